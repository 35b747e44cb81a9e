"""A run folder's `config.json`: what a run is a run of, so that nothing else is ever mixed into it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pliant.core import PliantError, read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """What was asked of `pliant train`; every field is part of the run's identity.

    Args:
        model: MODEL as on the command line; files as absolute paths. None in a run folder made from Python.
        args: keyword arguments of the factory.
        data: data name or absolute path.
        recipe: name in `pliant.recipes`.
        epochs: passes over the training split.
        lr, batch_size: None for the trainer's own.
        limit: most samples per split, None for all.
        seed: of weights, split and training.
    """

    model: str | None
    data: str
    args: dict[str, Any] = field(default_factory=dict)
    recipe: str = "nested"
    epochs: int = 10
    lr: float | None = None
    batch_size: int | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"--lr must be positive, got {self.lr}")

    def anchored(self) -> "RunConfig":
        """The same with absolute paths, so that the run can be continued from any folder."""
        from pliant.data import names  # loads torch, which reading a config does not need

        model = self.model
        place, colon, name = (model or "").rpartition(":")
        if colon and place.endswith(".py"):
            model = f"{Path(place).resolve()}:{name}"
        named = self.data.lower().replace("_", "-") in names()  # a name wins over a path, as in `load`
        data = self.data if named or not Path(self.data).exists() else str(Path(self.data).resolve())
        return RunConfig(**{**asdict(self), "model": model, "data": data})

    def save(self, run: Path) -> None:
        """Writes RUN/config.json."""
        write_json(run / "config.json", {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, run: Path) -> "RunConfig":
        """Reads RUN/config.json.

        Raises:
            PliantError: no run folder, or one of another format.
        """
        if not (run / "config.json").is_file():
            raise PliantError(
                "no run folder", where=str(run), fix="make one with: pliant train MODEL --data D --run " + str(run)
            )
        data = read_json(run / "config.json")
        names = {item.name for item in fields(cls)}
        if not isinstance(data, dict) or data.get("format", FORMAT) != FORMAT or not {"model", "data"} <= set(data):
            raise PliantError(
                f"not a config of format {FORMAT}", where=str(run / "config.json"), fix="train anew into another folder"
            )
        return cls(**{key: value for key, value in data.items() if key in names})

    def require_same(self, run: Path) -> None:
        """Raises `PliantError`, naming the first difference, when `run` is a run of something else."""
        known = RunConfig.load(run)
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(known, item.name)
            if mine != theirs:
                raise PliantError(
                    f"this run has {item.name} {theirs!r}, not {mine!r}",
                    where=str(run),
                    fix="give the same again to resume, or another --run",
                )


@contextmanager
def claimed(run: Path, config: RunConfig) -> Iterator[None]:
    """The run folder, made or checked; a new one that fails before its first checkpoint vanishes again.

    Raises:
        PliantError: the folder belongs to another run or holds other files, or cannot be written.
    """
    fresh = not run.exists()
    if (run / "config.json").is_file():
        config.require_same(run)
    elif not fresh and (not run.is_dir() or any(run.iterdir())):
        raise PliantError("is no run folder and not empty", where=str(run), fix="choose another --run")
    else:
        config.save(run)
    try:
        yield
    except BaseException:
        kept = (run / "model").exists() or any((run / "checkpoints").glob("*"))
        if fresh and not kept:
            shutil.rmtree(run, ignore_errors=True)
        raise
