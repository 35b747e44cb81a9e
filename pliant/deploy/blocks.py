"""Blocks of a network that decides, as ONNX graphs without weights."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pliant.core import PliantError
from pliant.core._torch_private import outside_modes
from pliant.deploy.fold import folded
from pliant.deploy.free_graph import NoForm, Source, common
from pliant.deploy.pack import Packer
from pliant.deploy.plain_numbers import plain_numbers
from pliant.export.operators import threads_of
from pliant.export.to_onnx import quiet
from pliant.export.weights import strip, tidy
from pliant.flow import Flow, State
from pliant_runtime.gaps import gap
from pliant_runtime.sessions import new_session

TOLERANCE = 1e-4
Case = tuple[list[Tensor], list[Tensor] | None]
"""Tensors for a state's parameters, and its outputs where they are known already."""


@dataclass(frozen=True)
class Trial:
    """What a block is tried on at some lengths.

    Args:
        lengths: which; empty where none is free.
        cases: the values.
    """

    lengths: Mapping[str, int]
    cases: Sequence[Case]


@dataclass
class Block:
    """A state's graph.

    Attributes:
        proto: the ONNX model, or None where nothing is computed.
        names: of its weights in the network, by their name in the graph.
        depends: per output the parameters it needs.
        error: largest relative difference to torch.
        file: of the graph without weights.
        packed: number in the packer.
        rows: the same for many rows: (file, number in the packer, threads), or why not.
        each: where lengths are free, the graphs it was put together from.
    """

    proto: Any = None
    each: list[Any] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    depends: list[set[int]] = field(default_factory=list)
    error: float = 0.0
    file: str | None = None
    packed: int | None = None
    max_threads: int | None = None
    rows: tuple[str, int, int | None] | str = "it computes nothing"


class _Bound(nn.Module):
    """A block as a module: its weights lie under their names in the network, so that the graph says which is which."""

    def __init__(self, flow: Flow, state: State, names: Mapping[int, str]) -> None:
        super().__init__()
        self.training = True  # keeps the exporter from merging equal weights; the network inside stays as it is
        self._flow, self._state = [flow], state
        for key, tensor in state.constants.items():
            if key in names:
                _place(self, names[key], tensor)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The block's outputs for its parameters."""
        found = self._flow[0].outputs(self._state, list(given))
        # The exporter wants outputs of its own.
        return tuple(tensor.clone() if _is_weight(self, tensor) else tensor for tensor in found)


def _is_weight(module: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is each for each in [*module.parameters(), *module.buffers()])


def _place(root: nn.Module, name: str, tensor: Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor)


def export(flow: Flow, state: State, names: Mapping[int, str], trials: Sequence[Trial], *, traced: int = 1) -> Block:
    """The graph of a state's block, compared with torch.

    Args:
        flow: the network.
        state: whose block.
        names: names of the network's tensors, by identity.
        trials: what it is compared on; it is traced on the first value of each.
        traced: at how many of these lengths a graph is made, to be put together to one for all.

    Raises:
        PliantError: no exporter can write it so that it answers as torch does.
    """
    if not state.outputs:
        return Block()
    module = _Bound(flow, state, names)
    failures = []
    more = ((_legacy, False, len(trials)),) if flow.sizes is not None else ()
    for write, numbers, count in ((_legacy, True, traced), *more, (_dynamo, True, traced)):
        try:
            found = []
            for trial in trials[:count]:
                with quiet(), flow.at(trial.lengths):
                    proto = write(module, list(trial.cases[0][0]), len(state.outputs))
                tidy(proto, "", set())
                prune(proto)
                if flow.sizes is not None:
                    feeds = {f"p#{n}": tensor.numpy() for n, tensor in enumerate(trial.cases[0][0])}
                    proto = folded(proto, feeds, numbers=numbers)
                plain_numbers(proto)
                prune(proto)
                found.append((proto, _canonical(proto)))
            block = _block(flow, state, found, [trial.lengths for trial in trials[:count]])
            for trial in trials:
                with flow.at(trial.lengths):
                    check(flow, state, block, trial.cases)
            return block
        except Exception as error:  # exporters raise anything; the other one may succeed, else all is told
            failures.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
    problem = f"a block cannot be exported ({'; '.join(failures)})"
    raise PliantError(problem, where=state.at, fix="write the operator named here with others")


def _block(flow: Flow, state: State, found: Sequence[tuple[Any, dict[str, str]]], lengths: Sequence[Mapping[str, int]]
           ) -> Block:  # fmt: skip
    proto, named = found[0]
    each = [other for other, _ in found] if flow.sizes is not None else []
    if each:
        if any(other != named for _, other in found):
            raise NoForm("it uses other weights at other lengths")
        proto = free(flow, state, each, lengths)
    for item in proto.graph.output:  # exporters do not always know how large it is
        shape = flow.labels(state.made[int(item.name[2:])])
        item.CopyFrom(helper.make_tensor_value_info(item.name, item.type.tensor_type.elem_type, shape))
    return Block(proto, each, named, _depends(proto, len(state.outputs)), max_threads=threads_of(proto))


def free(flow: Flow, state: State, protos: Sequence[Any], lengths: Sequence[Mapping[str, int]]) -> Any:
    """One graph for all lengths from a block's graphs at some, for one row or for many.

    Raises:
        NoForm: there is none.
    """
    shapes = {f"p#{place}": flow.labels(shape) for place, (_, shape) in enumerate(state.params)}
    shapes |= {f"o#{place}": flow.labels(shape) for place, shape in enumerate(state.made)}
    sources: dict[str, Source] = {}
    for place, (dtype, shape) in enumerate(state.params):
        for axis, size in enumerate(shape):
            read = None if flow.sizes is None else flow.sizes.read(size)
            if read is not None and read[0] not in sources:
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))
                sources[read[0]] = Source(place, kind, flow.labels(shape), axis, read[1], read[2])
    return common(protos, lengths, sources, shapes)


def _io(count: int, letter: str) -> list[str]:
    return [f"{letter}#{number}" for number in range(count)]


def _legacy(module: nn.Module, example: list[Tensor], outputs: int) -> Any:
    buffer = io.BytesIO()
    torch.onnx.export(
        module, tuple(example), buffer, dynamo=False, opset_version=17,  # type: ignore[arg-type]
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        input_names=_io(len(example), "p"), output_names=_io(outputs, "o"),
    )  # fmt: skip
    return onnx.load_model_from_string(buffer.getvalue())


def _dynamo(module: nn.Module, example: list[Tensor], outputs: int) -> Any:
    graph = make_fx(module)(*example)
    with outside_modes():
        program = torch.onnx.export(
            graph, tuple(example), dynamo=True, verbose=False, optimize=False,
            input_names=_io(len(example), "p"), output_names=_io(outputs, "o"),
        )  # fmt: skip
    if program is None:
        raise PliantError("the exporter returned nothing")
    return program.model_proto


def _canonical(proto: Any) -> dict[str, str]:
    """Give the weights numbers for names, so that equal blocks have equal graphs; returns number to name."""
    names = {item.name: f"w#{number}" for number, item in enumerate(proto.graph.initializer)}
    _rename(proto.graph, names)
    return {new: old for old, new in names.items()}


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _rename(inner, names)
    for item in graph.initializer:
        item.name = names.get(item.name, item.name)


def reads_of(node: Any) -> set[str]:
    """The values a node reads, those of its inner graphs included."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            found |= {name for each in inner.node for name in reads_of(each)} | {item.name for item in inner.output}
    return found


def prune(proto: Any) -> None:
    """Drop nodes, weights and inputs that no output needs."""
    graph = proto.graph
    wanted = {item.name for item in graph.output}
    kept = []
    for node in reversed(list(graph.node)):
        if wanted & set(node.output):
            wanted |= reads_of(node)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for items in (graph.input, graph.initializer):
        used = [type(item).FromString(item.SerializeToString()) for item in items if item.name in wanted]
        del items[:]
        items.extend(used)


def keep_outputs(block: Block, kept: Sequence[int]) -> None:
    """Leave these outputs alone in a block's graph, under new numbers."""
    if block.proto is None:
        return
    if not kept:
        block.proto, block.names, block.each = None, {}, []
        return
    for proto in [block.proto, *block.each]:
        graph = proto.graph
        items = [onnx.ValueInfoProto.FromString(graph.output[number].SerializeToString()) for number in kept]
        del graph.output[:]
        graph.output.extend(items)
        prune(proto)
    present = {item.name for item in block.proto.graph.initializer}
    block.names = {new: old for new, old in block.names.items() if new in present}


def _depends(proto: Any, outputs: int) -> list[set[int]]:
    needs: dict[str, set[str]] = {item.name: {item.name} for item in proto.graph.input}
    for node in proto.graph.node:
        found: set[str] = set().union(*(needs.get(name, set()) for name in reads_of(node)))
        for name in node.output:
            needs[name] = found
    return [{int(name[2:]) for name in needs.get(f"o#{n}", set())} for n in range(outputs)]


def pack(block: Block, packer: Packer, folder: Path, full: Mapping[str, Any]) -> None:
    """Write a block's graph without weights into a folder, and its weights into the packer."""
    if block.proto is None:
        return
    block.file, block.packed = packed(block.proto, block.names, packer, folder, full)


def packed(
    proto: Any, names: Mapping[str, str], packer: Packer, folder: Path, full: Mapping[str, Any]
) -> tuple[str, int]:
    """File name and packer number of a graph."""
    content, weights = strip(proto, {new for new, old in names.items() if old in full})
    file = f"graph-{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    (folder / file).write_bytes(content)
    return file, packer.add(weights, {new: (old, None) for new, old in names.items()})


def check(flow: Flow, state: State, block: Block, cases: Sequence[Case]) -> None:
    """Compare a block with torch; the largest relative difference goes to `block.error`.

    A decision may fall the other way where numbers lie within rounding of a threshold; it must not do so on most cases.

    Raises:
        PliantError: it differs.
    """
    if block.proto is None:
        return
    session = new_session(block.proto.SerializeToString())
    wrong = 0
    for given, known in cases:
        with torch.no_grad():
            wanted = flow.outputs(state, [tensor.clone() for tensor in given]) if known is None else known
        feeds = {item.name: given[int(item.name[2:])].numpy() for item in block.proto.graph.input}
        found = session.run([item.name for item in block.proto.graph.output], feeds)
        for number, (tensor, array) in enumerate(zip(wanted, found, strict=True)):
            expected, got = tensor.detach().numpy(), np.asarray(array)
            if expected.shape != got.shape or expected.dtype != got.dtype:
                kinds = f"{got.dtype}{list(got.shape)}, torch gives {expected.dtype}{list(expected.shape)}"
                raise PliantError(f"output {number} of a block is {kinds}", where=state.at, fix="report the operator")
            relative = gap(expected, got)[1]
            if expected.dtype.kind in "fc":
                if not relative <= TOLERANCE:
                    problem = (
                        f"output {number} of a block differs from torch by {relative:.2g} of its largest magnitude"
                    )
                    raise PliantError(problem, where=state.at, fix="write its operators with others")
                block.error = max(block.error, relative)
            else:
                wrong += bool(relative)
    if wrong > max(1, len(cases) // 2):
        problem = f"whole numbers or decisions of a block differ from torch on {wrong} of {len(cases)} inputs"
        raise PliantError(problem, where=state.at, fix="write its operators with others")
