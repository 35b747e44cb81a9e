"""Checkpoints: everything a training needs to go on bit for bit, as safetensors and JSON.

`checkpoints/STEP/tensors.safetensors` holds the state dict of the network (`net.`), the state of the optimizer
(`optimizer.INDEX.`) and the states of the random generators (`rng.`); `state.json` holds every number beside them. A
checkpoint is written aside and then renamed, so that it is there whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pliant.core import PliantError, atomic_folder, read_json, write_atomic, write_json

_VERSION = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_Number = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Subject:
    """What a checkpoint holds: the network, its optimizer, and the generators that draw during training."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    device: torch.device


def write_checkpoint(folder: Path, subject: Subject, *, step: int, position: Mapping[str, Any], keep: int) -> Path:
    """Write `folder/STEP`, unless it is there already, and remove all but the last `keep` checkpoints.

    Args:
        folder: the folder of the checkpoints.
        subject: what is saved.
        step: optimizer steps done.
        position: JSON data that is given back by `read_checkpoint`.
        keep: how many stay.

    Raises:
        PliantError: state that is neither tensor nor number, or a folder that cannot be written.
    """
    path = folder / f"{step:08d}"
    if path.exists():  # the same step of the same run: replacing it could only lose it
        return path
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    _split(subject.net.state_dict(), "net.", tensors, numbers)
    state = subject.optimizer.state_dict()
    for index, values in state["state"].items():
        _split(values, f"optimizer.{index}.", tensors, numbers)
    tensors |= _generators(subject)
    groups = [{k: v for k, v in g.items() if isinstance(v, _Number)} for g in state["param_groups"]]
    unique, aliases = _unshare(tensors)
    with atomic_folder(path) as aside:
        write_atomic(aside / _TENSORS, save(unique))
        written = {"version": _VERSION, "step": step, "position": dict(position)}
        write_json(aside / _STATE, {**written, "numbers": numbers, "aliases": aliases, "groups": groups})
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def read_checkpoint(path: Path, subject: Subject) -> dict[str, Any]:
    """Bring network, optimizer and generators back to where they were. Returns the position.

    Raises:
        PliantError: a damaged checkpoint, or one of another network or optimizer.
    """
    fix = f"delete this folder to go on from an older checkpoint ({path})"
    state = read_json(path / _STATE)
    try:
        if state["version"] != _VERSION:
            raise PliantError(f"checkpoint version {state['version']}, this is {_VERSION}", where=str(path), fix=fix)
        tensors = load((path / _TENSORS).read_bytes())
        tensors |= {alias: tensors[name] for alias, name in state["aliases"].items()}
        values = {**tensors, **state["numbers"]}
        subject.net.load_state_dict(_under("net.", values))
        _load_optimizer(subject.optimizer, values, state["groups"])
        _set_generators(subject, tensors)
        return dict(state["position"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise PliantError(f"checkpoint cannot be read ({error})", where=str(path), fix=fix) from error


def _split(values: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value.detach()
            continue
        try:
            numbers[prefix + name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            problem = f"{prefix}{name} is a {type(value).__name__}, which a checkpoint cannot hold"
            raise PliantError(problem, fix="keep tensors, numbers, strings, lists and dicts alone") from error


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _unshare(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, on the CPU and contiguous; and the names of tied tensors -> the name that holds them."""
    first: dict[tuple[Any, ...], str] = {}
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        # Two names of one memory; views that overlap only in part are saved apart.
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        # safetensors refuses shared memory, so a tensor that is a part of a larger one is copied.
        alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        unique[name] = tensor.cpu() if alone else tensor.cpu().clone(memory_format=torch.contiguous_format)
    return unique, aliases


def _load_optimizer(optimizer: torch.optim.Optimizer, values: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in _under("optimizer.", values).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    fresh = optimizer.state_dict()
    for group, saved in zip(fresh["param_groups"], groups, strict=True):
        group.update(saved)
    optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


def _generators(subject: Subject) -> dict[str, Tensor]:
    states = {"rng.torch": torch.get_rng_state(), "rng.recipe": subject.generator.get_state()}
    if subject.device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(subject.device)
    return states


def _set_generators(subject: Subject, tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["rng.torch"])
    subject.generator.set_state(tensors["rng.recipe"])
    if subject.device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], subject.device)
