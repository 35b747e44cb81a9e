"""Networks that decide, compiled: blocks, edges and the program of an artifact."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import PliantError, copied, map_tensors, seeded
from pliant.deploy.blocks import Block, Case, Trial, export, free, keep_outputs, pack, packed, prune
from pliant.deploy.fold import folded
from pliant.deploy.free_graph import NoForm
from pliant.deploy.lengths import Bounds, resized, sequences
from pliant.deploy.pack import Packer
from pliant.deploy.row_graph import NoRule
from pliant.deploy.rows import compare_rows, with_rows
from pliant.deploy.targets import full_state, name_of
from pliant.export.structure import InputForm
from pliant.export.to_onnx import quiet
from pliant.flow import Flow, State
from pliant.flow.explore import Arg, Const, In, Leaf, Scalar
from pliant.flow.needs import needed, samples_of
from pliant.flow.sizes import Sizes
from pliant_runtime.grammar import FORMAT, VERSION, WEIGHTS

STEPS = 100_000
"""States one row may visit."""
_CASES = 2
_STATES = 250
"""Most states of a program whose lengths are free; a list that grows with the length comes to an end here."""
TOLERANCE = 1e-3
"""Allowed when stored rows are tried on another machine, relative to the largest magnitude."""
Checked = tuple[Any, list[np.ndarray[Any, Any]]]
"""A row and the arrays and numbers that the network returns for it."""


@dataclass
class Deciding:
    """A network that decides, on its way into an artifact.

    Attributes:
        flow: its states.
        form: how its inputs are given.
        fixed: whether its inputs have no rows.
        blocks: one per state.
        live: per state the parameters that something needs.
        made: per state the outputs that something needs.
        spans: free lengths, each with its least and its most.
        tried: lengths at which blocks were compared with torch, the example's first, with the example at each.
    """

    net: nn.Module
    flow: Flow
    form: InputForm
    fixed: bool
    blocks: list[Block]
    live: list[list[int]] = field(default_factory=list)
    made: list[list[int]] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    tried: list[tuple[dict[str, int], InputForm]] = field(default_factory=list)
    traced: int = 1


def deciding(net: nn.Module, example: Any, *, seed: int = 0) -> Deciding:
    """Take a network apart and export its blocks, each compared with torch.

    Raises:
        PliantError: its forward cannot become a program (the message names the line), or a block cannot be exported.
    """
    form, local = InputForm(example), _local(net)
    made = Deciding(local, Flow(local, form.rows(1)), form, not form.batched, [], tried=[({}, form)])
    return _exported(made, seed)


def deciding_free(net: nn.Module, example: Any, *, seed: int = 0) -> Deciding:
    """The same with the lengths of its sequences free, each block compared with torch at several.

    Raises:
        PliantError: a length cannot be free; the message says what stands in the way, and where.
    """
    form, local = InputForm(example), _local(net)
    axes, lengths = sequences(form)
    if not lengths:
        raise PliantError("no input is a sequence: integers [N, T] or floats [N, T, C]")
    sizes = Sizes(axes, lengths)
    with _no_fast_path(), quiet():
        flow = Flow(local, form.rows(1), limit=_STATES, sizes=sizes)
    with _no_fast_path():
        bounds = Bounds(flow, form, sizes)
    made, more = bounds.tried()
    tried = [(each, resized(form, axes, each)) for each in [*made, *more]]
    return _exported(Deciding(local, flow, form, False, [], spans=bounds.spans, tried=tried, traced=len(made)), seed)


def _local(net: nn.Module) -> nn.Module:
    local = copied(net).cpu().requires_grad_(False)
    for part, other in zip(net.modules(), local.modules(), strict=True):
        other.training = part.training
    return local


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """The fused transformer layer has no ONNX form."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _exported(made: Deciding, seed: int) -> Deciding:
    """With its blocks."""
    flow, names = made.flow, names_of(made.net)
    generator = seeded(seed, "compile", "blocks")
    recorded = []
    with flow.still():
        for lengths, form in made.tried:
            with flow.at(lengths):
                inputs = [form.rows(1), *[form.random(1, generator) for _ in range(_CASES)]]
                recorded.append((lengths, record(flow, inputs)))
    with _no_fast_path(), flow.still():
        for number, state in enumerate(flow.states):
            trials = []
            for lengths, found in recorded:
                cases = found.get(number, [])
                with flow.at(lengths):
                    more = [(_samples(flow, state, generator), None) for _ in range(_CASES - len(cases))]
                trials.append(Trial(lengths, [*cases, *more]))
            made.blocks.append(export(flow, state, names, trials, traced=made.traced))
    _prune(made)
    return made


def _samples(flow: Flow, state: State, generator: torch.Generator) -> list[Tensor]:
    return samples_of([(dtype, flow.shape(shape)) for dtype, shape in state.params], generator)


def names_of(net: nn.Module) -> dict[int, str]:
    """The name of every tensor of a network that has one."""
    pairs = [*net.named_parameters(), *net.named_buffers()]
    found: dict[int, str] = {}
    for name, tensor in pairs:
        found.setdefault(id(tensor), name)
    return found


def record(flow: Flow, inputs: Sequence[Any], most: int = 300) -> dict[int, list[Case]]:
    """Values of states' parameters and outputs, met while the network's own code runs block by block on some inputs."""
    found: dict[int, list[Case]] = {}
    for each in inputs:
        number, given = 0, [tensor.clone() for tensor in InputForm(each).tensors(each)]
        for _ in range(most):
            state = flow.states[number]
            cases = found.setdefault(number, [])
            if state.value is None and len(cases) >= _CASES:
                break
            with torch.no_grad():
                made = flow.outputs(state, [tensor.clone() for tensor in given])
            if len(cases) < _CASES:
                cases.append(([tensor.detach().clone() for tensor in given], made))
            if state.value is None:
                break
            side = int(_fetch(state.value, given, made))
            if state.keys is not None:
                if side not in state.keys:
                    break
                side = state.keys.index(side)
            else:
                side = 1 - side
            edge = state.edges[side]
            number, given = edge.target, [_fetch(arg, given, made, kind) for arg, kind in
                                          zip(edge.args, flow.states[edge.target].params, strict=True)]  # fmt: skip
    return found


def _fetch(arg: Arg, given: list[Tensor], made: list[Tensor], kind: Any = None) -> Tensor:
    if isinstance(arg, Const):
        return torch.tensor(arg.value, dtype=kind[0])
    return given[arg.index] if isinstance(arg, In) else made[arg.index]


# -- what is needed ---------------------------------------------------------------------------------------------------


def _prune(net: Deciding) -> None:
    """Leave out parameters and outputs that nothing needs: backwards over the program until nothing changes."""
    net.live, net.made = needed(net.flow.states, [block.depends for block in net.blocks])
    for block, kept in zip(net.blocks, net.made, strict=True):
        keep_outputs(block, kept)


# -- the program ------------------------------------------------------------------------------------------------------


def write(
    net: Deciding, module: nn.Module, folder: Path, *, checks: Sequence[Checked] = (), steps: int = STEPS
) -> dict[str, Any]:
    """Graphs and weights into a folder; returns the program, still without measured figures and hashes.

    Args:
        net: as it was taken apart.
        module: whose weights are stored.
        folder: receives the files.
        checks: rows with what the network gives for them, to be tried on other machines.
        steps: states a row may visit.
    """
    packer = Packer(full_state(module))
    for state, block in zip(net.flow.states, net.blocks, strict=True):
        pack(block, packer, folder, packer.full)
        if block.proto is not None:
            block.rows = _many(net, state, block, packer, folder)
    check = _check(net, checks, packer) if checks else None
    tensors = packer.write(folder / WEIGHTS)
    inputs = [
        {"name": name, "dtype": _dtype(dtype), "shape": [*net.flow.labels(shape)] if net.fixed else
         ["N", *net.flow.labels(shape[1:])]}
        for name, (dtype, shape) in zip(net.form.names, net.flow.states[0].params, strict=True)
    ]  # fmt: skip
    labels = {size for state in net.flow.states for shape in _shapes(net, state) for size in shape}
    more = sorted(size for size in labels if isinstance(size, str) and size not in net.spans)
    free_sizes = {"sizes": more} if net.spans else {}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name_of(module),
        "sha256": "",
        "signature": {
            "inputs": inputs, "outputs": [], "call": net.form.kind, "preprocessing": None, "classes": [], "task": None,
            **({"lengths": {name: list(span) for name, span in net.spans.items()}} if net.spans else {}),
        },
        "quality": None,
        "conditions": {},
        "entries": [{"config": {}, "measured": {}, "start_state": 0, "check": check}],
        "states": [_state(net, number, packer) for number in range(len(net.blocks))],
        "tensors": tensors,
        "files": {},
        "steps": steps,
        **free_sizes,
    }  # fmt: skip


def _shapes(net: Deciding, state: State) -> list[tuple[int | str, ...]]:
    return [net.flow.labels(shape) for shape in [*(shape for _, shape in state.params), *state.made]]


def _check(net: Deciding, checks: Sequence[Checked], packer: Packer) -> dict[str, Any]:
    columns = zip(*(net.form.tensors(row) for row, _ in checks), strict=True)
    given = [torch.cat(column).numpy() if len(checks) > 1 else column[0].numpy() for column in columns]
    found = [array for _, arrays in checks for array in arrays]
    return {
        "inputs": [packer.own(f"check/input/{name}", array) for name, array in zip(net.form.names, given, strict=True)],
        "outputs": [packer.own(f"check/0/{number}", array) for number, array in enumerate(found)],
        "tolerance": TOLERANCE,
    }


def _many(net: Deciding, state: State, block: Block, packer: Packer, folder: Path) -> tuple[str, int, int | None] | str:
    """The block for many rows: proven equal to the block on each row, or why there is none."""
    if net.fixed:
        return "the network's inputs have no rows"
    generator = seeded(0, "compile", "rows")
    samples = []
    for lengths, _ in net.tried:
        with net.flow.at(lengths):
            samples.append([_samples(net.flow, state, generator) for _ in range(3)])
    try:
        found = [with_rows(one, each) for one, each in zip(block.each or [block.proto], samples)]
        proto = found[0]
        if block.each:
            found = [_folded(one, each) for one, each in zip(found, samples)]
            proto = free(net.flow, state, found, [lengths for lengths, _ in net.tried[: len(found)]])
            for each in samples:
                compare_rows(block.proto, proto, each)
    except (NoRule, NoForm) as error:
        return str(error)
    names = {item.name: block.names[item.name] for item in proto.graph.initializer if item.name in block.names}
    file, number = packed(proto, names, packer, folder, packer.full)
    return file, number, block.max_threads


def _folded(proto: Any, rows: Sequence[Sequence[Tensor]]) -> Any:
    """A graph for many rows with its sizes as constants."""
    feeds = {f"p#{n}": np.stack([row[n].numpy() for row in rows]) for n in range(len(rows[0]))}
    made = folded(proto, feeds, rows=True)
    prune(made)
    return made


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _state(net: Deciding, number: int, packer: Packer) -> dict[str, Any]:
    state, block = net.flow.states[number], net.blocks[number]
    params = {old: new for new, old in enumerate(net.live[number])}
    outs = {old: new for new, old in enumerate(net.made[number])}
    kinds = [state.params[old] for old in net.live[number]]

    def ref(arg: Arg) -> dict[str, Any]:
        assert not isinstance(arg, Const)
        return {"in": params[arg.index]} if isinstance(arg, In) else {"out": outs[arg.index]}

    made: list[Any] = []
    graph_inputs: list[Any] = []
    if block.proto is not None:
        made = [_kind(item) for item in block.proto.graph.output]
        graph_inputs = [[params[int(item.name[2:])], item.name] for item in block.proto.graph.input]
    rows: dict[str, Any] = {"why": block.rows} if isinstance(block.rows, str) else {
        "graph": block.rows[0], "initializers": packer.initializers(block.rows[1]), "max_threads": block.rows[2],
    }  # fmt: skip
    return {
        "graph": block.file,
        "inputs": graph_inputs,
        "outputs": [f"o#{old}" for old in net.made[number]] if block.proto is not None else [],
        "initializers": packer.initializers(block.packed) if block.packed is not None else [],
        "max_threads": block.max_threads,
        "at": state.at,
        "params": [[_dtype(dtype), list(net.flow.labels(shape))] for dtype, shape in kinds],
        "made": made,
        "rows": rows,
        "next": _next(net, state, ref),
    }


def _kind(item: Any) -> list[Any]:
    from onnx import helper

    kind = item.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return [str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape]


def _next(net: Deciding, state: State, ref: Callable[[Arg], dict[str, Any]]) -> dict[str, Any]:
    if state.raised is not None:
        return {"raise": {"type": state.raised[0][:200], "message": state.raised[1][:10_000]}}
    if state.value is None:
        return {"return": _struct(state.returns, ref)}

    def edge(number: int) -> dict[str, Any]:
        target = state.edges[number].target
        args = []
        for place in net.live[target]:
            arg = state.edges[number].args[place]
            dtype = _dtype(net.flow.states[target].params[place][0])
            args.append({"const": _json(arg.value), "dtype": dtype} if isinstance(arg, Const) else ref(arg))
        return {"state": target, "args": args}

    if state.keys is None:
        return {"if": ref(state.value), "then": edge(0), "else": edge(1)}
    return {"switch": ref(state.value), "cases": [[key, edge(number)] for number, key in enumerate(state.keys)]}


def _struct(shape: Any, ref: Callable[[Arg], dict[str, Any]]) -> dict[str, Any]:
    if isinstance(shape, Leaf):
        return {"t": ref(shape.arg)}
    if isinstance(shape, Scalar):
        return {"scalar": ref(shape.arg), "type": shape.kind}
    kind, inner = next(iter(shape.items()))
    if kind == "dict":
        return {"dict": {name: _struct(item, ref) for name, item in inner.items()}}
    if kind in ("list", "tuple"):
        return {kind: [_struct(item, ref) for item in inner]}
    return {"odd": str(inner)} if inner != _json(inner) else dict(shape)


def _json(value: Any) -> Any:
    """A number, as a word where JSON has none for it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def cpu(example: Any) -> Any:
    """An example on the CPU, without gradients."""
    return map_tensors(lambda tensor: tensor.detach().cpu(), example)


def refuse_fixed_zero(form: InputForm) -> None:
    """Raises PliantError for an example without rows."""
    if any(not len(tensor) for tensor in form.tensors(form.example)):
        raise PliantError("the example has no rows", fix="give at least one")
