"""Graph: a traced network with its units, groups, spans and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from pliant.core import PliantError, as_call
from pliant.graph.analyse import Analysis, Axis, Rigid, analyse
from pliant.graph.capture import capture, two_rows
from pliant.graph.ir import Program, refs
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch, find_patches
from pliant.graph.spans import Span, common_path, find_spans, guards


@dataclass(frozen=True)
class Group:
    """Units that are tied in the same pattern.

    Args:
        name: `kind:module.path`, unique in the graph.
        units: how many there are.
        where: parameters and buffers it reaches, as (state name, axis).
    """

    name: str
    units: int
    where: tuple[tuple[str, int], ...]

    @property
    def kind(self) -> str:
        """heads, width or hidden."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Cost:
    """Cost of one sample: FLOPs (two for each multiply-accumulate of matrix operators), parameters, bytes of them."""

    flops: int
    parameters: int
    bytes: int


class Graph:
    """What `trace` returns. Not changed after it is made.

    Attributes:
        program: operators in order.
        states: every parameter, buffer and constant by its name in the module's state dict; tied names share a tensor.
        parameters: names of `states` that are trained.
        example: the example that was traced (at least two rows).
        asked: knob-name patterns (`head_dim:*`, `kernel:stem`) of what bends only where it is asked for.
        groups, spans: what bends.
        rigid: what does not, and why.
        notes: what the trace could not keep.
        patches: numbers that follow the kept units.
    """

    def __init__(self, program: Program, states: dict[str, Tensor], parameters: set[str], example: Any,
                 notes: list[str], *, frozen: set[str] | None = None, asked: Sequence[str] = ()) -> None:  # fmt: skip
        self.program, self.states, self.parameters = program, states, parameters
        self.example, self.notes = example, notes
        self.frozen, self.asked = set(frozen or ()), tuple(asked)
        self.analysis: Analysis = analyse(program, states, _flat(program, example), parameters, self.frozen)
        self.patches: list[Patch] = find_patches(program, self.analysis)
        self.state_axes = self._state_axes()
        self.spans: list[Span] = find_spans(program, self.analysis, states, parameters)
        self.guards = guards(program, self.spans)
        self.span_names = _unique([f"depth:{span.module or span.merge}" for span in self.spans])
        self.made_by = self._makers()
        self.groups = self._name_groups()

    @property
    def rigid(self) -> list[Rigid]:
        """Calls that cannot bend."""
        return self.analysis.rigid

    def _state_axes(self) -> dict[str, dict[int, Axis]]:
        """State name to its elastic axes."""
        found: dict[str, dict[int, Axis]] = {}
        for node in self.program.states:
            shape = self.states[node.target].shape
            axes = {
                a: self.analysis.axes[node.name, 0, a]
                for a in range(len(shape))
                if (node.name, 0, a) in self.analysis.axes
            }
            found[node.target] = axes
        return found

    def _makers(self) -> dict[str, set[int]]:
        """State name to the groups that the calls it feeds give out: what a weight makes, not what it reads."""
        states = {node.name: node.target for node in self.program.states}
        found: dict[str, set[int]] = {}
        for node in self.program:
            used = [states[ref.name] for ref in refs(node.args) if ref.name in states]
            for axis in range(len(self.analysis.shapes.get((node.name, 0), ())) if used else 0):
                content = self.analysis.axes.get((node.name, 0, axis))
                if content is not None:
                    for name in used:
                        found.setdefault(name, set()).update(content.group[content.group >= 0].tolist())
        return found

    def _name_groups(self) -> list[Group]:
        where: list[list[tuple[str, int]]] = [[] for _ in self.analysis.units]
        for name, axes in self.state_axes.items():
            for axis, content in axes.items():
                for group in np.unique(content.group[content.group >= 0]):
                    where[group].append((name, axis))
        heads = self._attention_groups()
        pairs = [_group_names("heads" if i in heads else "width", i, w, self) for i, w in enumerate(where)]
        common = [pair[0] for pair in pairs]
        names = [shared if common.count(shared) == 1 else first for shared, first in pairs]
        return [Group(n, u, tuple(w)) for n, u, w in zip(_unique(names), self.analysis.units, where, strict=True)]

    def _attention_groups(self) -> set[int]:
        """Groups whose units lie on a leading axis of an attention call, so that a unit is a head."""
        found: set[int] = set()
        for node in self.program:
            if node.packet in ("aten.scaled_dot_product_attention", "aten.softmax", "aten._softmax"):
                shape = self.analysis.shapes[node.name, 0]
                for axis in range(1, len(shape) - 2):
                    if (node.name, 0, axis) in self.analysis.axes:
                        content = self.analysis.axes[node.name, 0, axis]
                        found.update(content.group[content.group >= 0].tolist())
        return found

    def counts(self, kept: Mapping[int, int]) -> IntArray:
        """Kept counts of all groups, whole where not given; int64 [groups]."""
        return np.array([kept.get(i, units) for i, units in enumerate(self.analysis.units)], dtype=np.int64)

    def used_states(self, spans: tuple[bool, ...]) -> list[str]:
        """State names that a sub-network with these spans uses, in program order."""
        skipped = {i for i, keep in enumerate(spans) if not keep}
        return [n.target for n in self.program.states if not skipped & self.guards.get(n.name, frozenset())]

    def cost(self, counts: IntArray, spans: tuple[bool, ...]) -> Cost:
        """FLOPs for one sample, parameters and their bytes, of a sub-network."""
        skipped = {i for i, keep in enumerate(spans) if not keep}
        macs = 0.0
        for node, constant, axes in self.analysis.macs:
            if not skipped & self.guards.get(node, frozenset()):
                macs += constant * float(np.prod([axis.size(counts) for axis in axes]))
        parameters = size = 0
        seen: set[int] = set()
        for name in self.used_states(spans):
            tensor = self.states[name]
            if name in self.parameters and id(tensor) not in seen:
                seen.add(id(tensor))
                axes_of = self.state_axes[name]
                n = int(np.prod([axes_of[a].size(counts) if a in axes_of else s for a, s in enumerate(tensor.shape)]))
                parameters += n
                size += n * tensor.element_size()
        return Cost(round(2 * macs / self.analysis.batch), parameters, size)

    def coverage(self) -> float:
        """Share of the parameters that lie on at least one elastic axis or in a span."""
        inside = {node for span in self.spans for node in span.nodes}
        total = covered = 0
        for node in self.program.states:
            if node.target in self.parameters:
                tensor = self.states[node.target]
                total += tensor.numel()
                if node.name in inside:
                    covered += tensor.numel()
                    continue
                free = np.prod([(axis.group < 0).mean() for axis in self.state_axes[node.target].values()] or [1.0])
                covered += round(tensor.numel() * (1 - float(free)))
        return covered / total if total else 0.0


def trace(model: nn.Module, example: Any, *, asked: Sequence[str] = ()) -> Graph:
    """The graph of a model: what bends, what is tied to what, what it costs.

    The model is not changed; its parameters are shared with the graph, not copied.

    Args:
        model: any `nn.Module`.
        example: an input: a tensor, a tuple (positional) or a dict (keyword); axis 0 is the batch.
        asked: knob-name patterns (`head_dim:*`, `kernel:stem`) of what bends only where it is asked for.

    Raises:
        PliantError: the model cannot be exported (data-dependent control flow, say); the message names the line.
        TypeError: `model` or `example` is of a wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    example = two_rows(example)
    as_call(example)
    program, notes = capture(model, example)
    own = dict(model.named_parameters(remove_duplicate=False))
    states: dict[str, Tensor] = {}
    for node in program.states:
        found = own.get(node.target, program.constants.get(node.target))
        states[node.target] = _attribute(model, node.target) if found is None else found
    return Graph(program, states, set(own) & set(states), example, notes, asked=asked)


def _attribute(model: nn.Module, name: str) -> Tensor:
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise PliantError(f"{name} is no tensor but {type(found).__name__}")
    return found


def _flat(program: Program, example: Any) -> list[Any]:
    """The example's values in the order of the program's inputs.

    Raises:
        PliantError: nested inputs, which a traced network cannot take by name.
    """
    args, kwargs = as_call(example)
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(values) != len(program.inputs):
        raise PliantError(
            f"the network takes {len(program.inputs)} tensors, the example holds {len(values)} at its top level",
            fix="give every tensor as an argument of its own, not inside a tuple or dict",
        )
    return values


def _group_names(kind: str, index: int, where: list[tuple[str, int]], graph: Graph) -> tuple[str, str]:
    """Two names: by the module common to all makers of the units (heads: to all weights), and by the first maker."""
    wide = [name for name, _ in where if graph.states[name].dim() > 1] or [name for name, _ in where]
    makers = [name for name in wide if index in graph.made_by.get(name, ())] or wide
    chosen = wide if kind == "heads" else makers
    first = makers[0].rpartition(".")[0] or makers[0]
    return f"{kind}:{common_path([name.rpartition('.')[0] for name in chosen]) or first}", f"{kind}:{first}"


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def to_state(graph: Graph) -> dict[str, Tensor]:
    """Every state under one name, tied names only once (the form that safetensors can hold)."""
    seen: set[int] = set()
    found = {}
    for name, tensor in graph.states.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().contiguous()
    return found


def aliases(graph: Graph) -> dict[str, str]:
    """Tied names: other name to the one that `to_state` holds."""
    first: dict[int, str] = {}
    found = {}
    for name, tensor in graph.states.items():
        if id(tensor) in first:
            found[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return found
