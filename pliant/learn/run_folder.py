"""The run folder: what it was begun with, so that it is never continued with something else."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from pliant.core import PliantError, read_json, write_json
from pliant.data import Dataset
from pliant.learn.recipe import Recipe
from pliant.learn.settings import Settings, stable_text

_KEY = "train"


def fingerprint(
    net: nn.Module, data: Dataset, *, recipe: Recipe, epochs: int, settings: Settings, seed: int
) -> dict[str, Any]:
    """Everything that decides what a training computes, as JSON data."""
    return {
        "parameters": {name: list(parameter.shape) for name, parameter in net.named_parameters()},
        "data": {"name": data.name, "task": data.task, "train": len(data.train), "val": len(data.val)},
        "seed": seed,
        "epochs": epochs,
        "recipe": stable_text(recipe),
        "settings": settings.fingerprint(),
    }


def open_run(run: str | Path, begun: dict[str, Any]) -> Path:
    """Make a run folder, or check that one that is there was begun with the same fingerprint.

    `config.json` keeps whatever else it holds; the fingerprint stands under "train". What a killed process left half
    written is removed.

    Args:
        run: the folder.
        begun: the fingerprint.

    Raises:
        PliantError: it was begun with something else (the message names what), or it cannot be written.
    """
    folder = Path(run)
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {"model": None}
    if not isinstance(config, dict):
        raise PliantError("not a JSON object", where=str(path), fix="choose another run folder")
    if _KEY in config:
        _check(folder, config[_KEY], begun)
    else:
        config[_KEY] = begun
        for name, value in (("data", begun["data"]["name"]), *((k, begun[k]) for k in ("seed", "epochs", "recipe"))):
            config.setdefault(name, value)
        write_json(path, config)
    checkpoints = folder / "checkpoints"
    for left in checkpoints.glob(".*") if checkpoints.is_dir() else ():
        shutil.rmtree(left, ignore_errors=True)
    return folder


def _check(folder: Path, there: Any, here: dict[str, Any]) -> None:
    if there == here:
        return
    found = [
        f"{name} ({difference})" for name, value in here.items() if (difference := _differs(there.get(name), value))
    ]
    fix = "choose another run folder, or delete this one to start over"
    raise PliantError(f"this run was begun with another {', another '.join(found)}", where=str(folder), fix=fix)


def _differs(there: Any, here: Any) -> str:
    """What differs, for people; empty when nothing does."""
    if there == here:
        return ""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        shown = [f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here" for name in names[:3]]
        return "; ".join(shown) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{there} there, {here} here"
