"""The program.json of an artifact, written from drafts."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pliant.core import PliantError, sha256_file, write_atomic
from pliant.data import Dataset
from pliant.deploy.draft import Draft
from pliant.deploy.pack import Packer
from pliant.deploy.shelled import Shelled
from pliant.export.weights import strip
from pliant_runtime.grammar import FORMAT, PROGRAM, VERSION, WEIGHTS, digest_of

_TOLERANCE = 1e-3
"""Allowed when an entry is tried on another machine, relative to the largest output; processors round differently."""


def program_of(name: str, drafts: list[Draft], packer: Packer, data: Dataset | None, folder: Path) -> dict[str, Any]:
    """The program of an artifact, and the weights.bin it speaks of. Figures are those the drafts have so far."""
    checks = [_check(number, draft, packer) for number, draft in enumerate(drafts)]
    tensors = packer.write(folder / WEIGHTS)
    return _program(name, drafts, data, checks, [_state(draft, packer) for draft in drafts], tensors)


def shell_program_of(
    name: str, drafts: list[Draft], made: Shelled, packer: Packer, data: Dataset | None, folder: Path
) -> dict[str, Any]:
    """The program of an artifact of shells, its graph and its weights.bin; arguments as in `program_of`.

    Args:
        made: the graph that holds all drafts.
        packer: an empty one.
    """
    graph, weights = strip(made.proto, made.weights)
    file = f"graph-{hashlib.sha256(graph).hexdigest()[:16]}.onnx"
    write_atomic(folder / file, graph)
    packed = packer.add(weights, {})
    checks = [_check(number, draft, packer) for number, draft in enumerate(drafts)]
    tensors = packer.write(folder / WEIGHTS)
    # Several threads may be wrong for one of the graphs it was made from.
    most = [draft.model.max_threads for draft in drafts if draft.model.max_threads is not None]
    first = _state(drafts[0], packer) | {
        "graph": file,
        "initializers": packer.initializers(packed),
        "max_threads": min(most, default=None),
        "on": list(made.on[0]),
    }
    states = [first, *({"like": 0, "on": list(on)} for on in made.on[1:])]
    program = _program(name, drafts, data, checks, states, tensors)
    why = "asked for"
    program["layout"] = {
        "form": "shells", "why": why, "measured": {}, "switch": {"name": made.switch, "size": made.size},
    }  # fmt: skip
    return program


def _program(
    name: str, drafts: list[Draft], data: Dataset | None, checks: list[Any], states: list[Any], tensors: list[Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "sha256": "",
        "signature": _signature(drafts, data),
        "quality": None,
        "conditions": {},
        "entries": [
            {"config": dict(draft.config), "measured": draft.values, "start_state": number, "check": checks[number]}
            for number, draft in enumerate(drafts)
        ],
        "states": states,
        "tensors": tensors,
        "files": {},
    }


def _check(number: int, draft: Draft, packer: Packer) -> dict[str, Any]:
    form = draft.model.form
    inputs = zip(form.names, form.tensors(draft.random.inputs))
    outputs = zip(draft.model.outputs, draft.random.outputs)
    return {
        "inputs": [packer.own(f"check/input/{name}", tensor.numpy()) for name, tensor in inputs],
        "outputs": [packer.own(f"check/{number}/{name}", tensor.detach().numpy()) for name, tensor in outputs],
        "tolerance": _TOLERANCE,
    }


def _signature(drafts: list[Draft], data: Dataset | None) -> dict[str, Any]:
    form = drafts[0].model.form
    inputs = [
        _value(name, tensor, ["N", *tensor.shape[1:]]) for name, tensor in zip(form.names, form.tensors(form.example))
    ]
    outputs = []
    for number, name in enumerate(drafts[0].model.outputs):
        shapes = [(draft.random.outputs[number].shape, draft.real.outputs[number].shape) for draft in drafts]
        outputs.append(_value(name, drafts[0].random.outputs[number], _free(shapes)))
    preprocessing = dict(data.preprocessing) if data is not None and data.preprocessing else None
    if preprocessing is not None and len(inputs) != 1:
        raise PliantError(f"{len(inputs)} inputs with preprocessing", where=data.name if data else None)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "call": form.kind,
        "preprocessing": preprocessing,
        "classes": list(data.classes) if data is not None else [],
        "task": data.task if data is not None else None,
    }


def _value(name: str, tensor: torch.Tensor, shape: list[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}


def _free(shapes: list[tuple[torch.Size, torch.Size]]) -> list[int | str]:
    """An output's shape from pairs of shapes for 2 and 3 rows: what follows the rows is "N", what else varies "?"."""
    every = np.array([list(shape) for pair in shapes for shape in pair], dtype=np.int64)
    rows = np.array([2, 3] * len(shapes))
    free: list[int | str] = []
    for column in every.reshape(len(rows), -1).T:
        fixed = bool((column == column[0]).all())
        free.append(int(column[0]) if fixed else "N" if (column == rows).all() else "?")
    return free


def _state(draft: Draft, packer: Packer) -> dict[str, Any]:
    model = draft.model
    return {
        "graph": draft.graph,
        "inputs": [[model.form.names.index(name), name] for name in model.inputs],
        "outputs": list(model.outputs),
        "initializers": packer.initializers(draft.packed),
        "max_threads": model.max_threads,
        "next": {"return": dict(model.structure)},
    }


def write_program(program: dict[str, Any], folder: Path) -> None:
    """Write program.json with the hashes of every other file in the folder, and its own."""
    files = sorted(path for path in folder.iterdir() if path.name != PROGRAM)
    program["files"] = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in files}
    program["sha256"] = digest_of(program)
    write_atomic(folder / PROGRAM, json.dumps(program, separators=(",", ":"), allow_nan=False))


def sizes_of(program: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of weights, graphs and the largest entry's weights alone."""
    files = program["files"]
    graphs = sum(fact["bytes"] for name, fact in files.items() if name.endswith(".onnx"))
    return {
        "weights of all sub-networks": files[WEIGHTS]["bytes"],
        "graphs": graphs,
        "weights of the largest sub-network": max(_state_bytes(program)),
    }


def weight_bytes(program: Mapping[str, Any]) -> int:
    """Bytes of the weights of all sub-networks in memory at once."""
    return sum(_state_bytes(program))


def _state_bytes(program: Mapping[str, Any]) -> list[int]:
    tensors = {item["name"]: item for item in program["tensors"]}
    return [_entry_bytes(state, tensors) for state in program["states"] if "like" not in state]


def _entry_bytes(state: Mapping[str, Any], tensors: Mapping[str, Any]) -> int:
    total = 0
    for item in state["initializers"]:
        tensor = tensors[item["tensor"]]
        count = np.dtype(tensor["dtype"]).itemsize
        for runs, size in zip(item["ranges"] or [None] * len(tensor["shape"]), tensor["shape"], strict=True):
            count *= size if runs is None else sum(end - begin for begin, end in runs)
        total += count
    return total
