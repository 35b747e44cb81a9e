"""Graph: a traced network with its units, groups, spans and costs."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import PliantError, as_call
from pliant.graph.analyse import Analysis, Axis, Rigid, analyse
from pliant.graph.capture import capture, shared_memory, two_rows, unwrapped
from pliant.graph.indexing import constant_slices
from pliant.graph.ir import Program, evaluated, refs
from pliant.graph.kernels import bend_kernels, find_kernels
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch, find_patches
from pliant.graph.sizes import bend_sizes, cost_scales, explained, find_sizes, with_sizes
from pliant.graph.spans import Span, closed, common_path, find_spans, guards
from pliant.graph.views import whole_writes

Ordered = tuple[str, int]
"""Name and floor of a group whose units cannot change places."""


@dataclass(frozen=True)
class Group:
    """Units that are tied in the same pattern.

    Args:
        name: `kind:module.path`, unique in the graph.
        units: how many there are.
        where: parameters and buffers it reaches, as (state name, axis).
        ordered: whether its units have places that they cannot leave (kernel taps from the centre, pixels, positions).
        floor: the smallest number of units that can be kept.
    """

    name: str
    units: int
    where: tuple[tuple[str, int], ...]
    ordered: bool = False
    floor: int = 1

    @property
    def kind(self) -> str:
        """heads, width, kernel, ..."""
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
        inputs: its values in the order of the program's inputs.
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
        self.inputs = _flat(program, example)
        with torch.random.fork_rng(devices=[]):
            self.analysis: Analysis = analyse(
                evaluated(program), states, self.inputs, parameters, self.frozen, self.asked
            )
        self.patches: list[Patch] = find_patches(program, self.analysis)
        self.ordered: dict[int, Ordered] = self._bend_ordered()
        self.state_axes = self._state_axes()
        self.spans: list[Span] = find_spans(program, self.analysis, states, parameters)
        self.guards = guards(program, self.spans)
        self.span_names = _unique([f"{s.kind}:{s.module or s.merge}" for s in self.spans if not s.parts])
        self.made_by = self._makers()
        self.groups = self._name_groups()

    @property
    def skippable(self) -> list[str]:
        """Paths of the modules that give out a tensor like the one they take: `block:PATH` may be asked for."""
        return self.analysis.skippable

    @property
    def rigid(self) -> list[Rigid]:
        """Calls that cannot bend."""
        return self.analysis.rigid

    def _bend_ordered(self) -> dict[int, Ordered]:
        """Enter what was asked for and has an order of its own; group index to its name and floor."""
        first = len(self.analysis.units)
        kernels, refused = find_kernels(self.program, self.states, self.parameters, self.frozen, self.asked)
        self.patches += bend_kernels(self.program, self.analysis, kernels)
        self.analysis.rigid += refused
        sizes, self._size_patches = bend_sizes(self.program, self.analysis)
        self.patches += self._size_patches
        self._scales: dict[bytes, list[float]] = {}
        found = {first + i: (kernel.name, kernel.floor) for i, kernel in enumerate(kernels)}
        return found | {i: (name, 1) for i, name in sizes.items()}

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
        kinds = dict.fromkeys(self._expert_groups(), "experts") | dict.fromkeys(self._attention_groups(), "heads")
        free = [(i, w) for i, w in enumerate(where) if i not in self.ordered]
        pairs = [_group_names(kinds.get(i, "width"), i, w, self) for i, w in free]
        common = [pair[0] for pair in pairs]
        names = [shared if common.count(shared) == 1 else first for shared, first in pairs]
        if self.analysis.inner is not None:
            inner, refused = self.analysis.inner.names(self.analysis)
            names = [inner.get(i, name) for (i, _), name in zip(free, names, strict=True)]
            for module, node, reason in refused:
                operator, line = (node.target, node.line) if node else ("", "")
                self.analysis.rigid.append(Rigid(operator, module, line, reason))
        names = _unique([*names, *(name for name, _ in self.ordered.values())])  # ordered groups come last
        floors = self.analysis.floors | {i: floor for i, (_, floor) in self.ordered.items()}
        return [
            Group(n, u, tuple(w), i in self.ordered, floors.get(i, 1))
            for i, (n, u, w) in enumerate(zip(names, self.analysis.units, where, strict=True))
        ]

    def _attention_groups(self) -> set[int]:
        """Groups whose units lie on a leading axis of an attention call, so that a unit is a head."""
        found: set[int] = set()
        for node in self.program:
            if node.packet in ("aten.scaled_dot_product_attention", "aten.softmax", "aten._softmax"):
                shape = self.analysis.shapes[node.name, 0]
                for axis in range(len(shape) - 2):  # the first one may hold the batch and the heads
                    if (node.name, 0, axis) in self.analysis.axes:
                        content = self.analysis.axes[node.name, 0, axis]
                        found.update(content.group[content.group >= 0].tolist())
        return found

    def _expert_groups(self) -> set[int]:
        """Groups that a router chooses from, by value or by softmax along their own axis, and whose units are stacked.

        Stacked: a unit is a whole matrix of a weight that is no convolution's, or several rows.
        """
        routed, convolved = set(self.analysis.floors), set[str]()
        for node in self.program:
            if node.packet == "aten.softmax":
                shape = self.analysis.shapes[node.name, 0]
                axis = self.analysis.axes.get((node.name, 0, node.args[1] % len(shape)))
                routed.update([] if axis is None else axis.group[axis.group >= 0].tolist())
            if node.packet.startswith("aten.conv"):
                convolved.update(ref.name for ref in refs(node.args))
        kernels = {node.target for node in self.program.states if node.name in convolved}
        return {
            group
            for name, axes in self.state_axes.items()
            for axis in axes.values()
            for group, count in zip(*np.unique(axis.group[axis.group >= 0], return_counts=True), strict=True)
            if group in routed and name not in kernels
            and (sum(size > 1 for size in self.states[name].shape) > 2 or count > self.analysis.units[group])
        }  # fmt: skip

    def counts(self, kept: Mapping[int, int]) -> IntArray:
        """Kept counts of all groups, whole where not given; int64 [groups]."""
        return np.array([kept.get(i, units) for i, units in enumerate(self.analysis.units)], dtype=np.int64)

    def skipped(self, spans: Sequence[bool]) -> set[int]:
        """Which spans are skipped, given which of those that have a name are kept."""
        return {i for i, keep in enumerate(closed(self.spans, spans)) if not keep}

    def is_needed(self, node: str, skipped: AbstractSet[int]) -> bool:
        """Whether a node runs in a sub-network without some spans."""
        return any(not kept & skipped for kept in self.guards.get(node, ()))

    def used_states(self, spans: tuple[bool, ...]) -> list[str]:
        """State names that a sub-network with these spans uses, in program order."""
        skipped = self.skipped(spans)
        return [n.target for n in self.program.states if self.is_needed(n.name, skipped)]

    def cost(self, counts: IntArray, spans: tuple[bool, ...]) -> Cost:
        """FLOPs for one sample, parameters and their bytes, of a sub-network."""
        skipped = self.skipped(spans)
        macs = 0.0
        for (node, constant, axes), scale in zip(self.analysis.macs, self.scales_at(counts), strict=True):
            if self.is_needed(node, skipped):
                macs += scale * constant * float(np.prod([axis.size(counts) for axis in axes]))
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
        for tensor in self.opaque_states(skipped).values():
            if isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                parameters += tensor.numel()
                size += tensor.numel() * tensor.element_size()
        return Cost(round(2 * macs / self.analysis.batch), parameters, size)

    def opaque_states(self, skipped: AbstractSet[int] = frozenset()) -> dict[str, Tensor]:
        """Parameters and buffers of the sub-modules that run as they are, but for those in skipped spans."""
        found: dict[str, Tensor] = {}
        for path in self.opaque_paths(skipped):
            module = self.program.opaque[path].module
            found |= {f"{path}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
        return found

    def opaque_paths(self, skipped: AbstractSet[int] = frozenset()) -> list[str]:
        """Paths of the sub-modules that run as they are, but for those in skipped spans."""
        calls = [n for n in self.program if n.kind == "call" and n.target.startswith("module.")]
        called = [n.target.removeprefix("module.") for n in calls if self.is_needed(n.name, skipped)]
        return list(dict.fromkeys(called))

    def scales_at(self, counts: IntArray) -> list[float]:
        """The factor of every entry of `analysis.macs` at the kept resolutions and lengths; remembered."""
        key = bytes(counts[[patch.axis.group[0] for patch in self._size_patches]])
        if key not in self._scales:
            given = self.program, self.analysis, self.states, self.inputs
            whole = not any(patch.value(counts) < len(patch.axis.group) for patch in self._size_patches)
            count = len(self.analysis.macs)
            self._scales[key] = [1.0] * count if whole else cost_scales(*given, self._size_patches, counts)
        return self._scales[key]

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
        for tensor in {id(t): t for t in self.opaque_states().values() if isinstance(t, nn.Parameter)}.values():
            total += tensor.numel()
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
    model, example = unwrapped(model), two_rows(example)
    as_call(example)
    sizes, refused = find_sizes(model, example, asked)
    try:
        program, notes = capture(model, example, dynamic={size.input: size.axes for size in sizes})
    except PliantError as error:
        raise explained(error, sizes, example) from error
    program = constant_slices(whole_writes(with_sizes(program, sizes)))
    own = dict(model.named_parameters(remove_duplicate=False))
    states: dict[str, Tensor] = {}
    for node in program.states:
        found = own.get(node.target, program.constants.get(node.target))
        states[node.target] = _attribute(model, node.target) if found is None else found
    shared = shared_memory(program, states)
    graph = Graph(program, states, set(own) & set(states), example, notes, frozen=shared, asked=asked)
    graph.analysis.rigid += refused
    return graph


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
        PliantError: the example has another form than what was traced.
    """
    try:
        return list(program.form.tensors(*as_call(example)))
    except (TypeError, ValueError) as error:
        raise PliantError(f"the example does not fit the graph: {error}") from error


def _group_names(kind: str, index: int, where: list[tuple[str, int]], graph: Graph) -> tuple[str, str]:
    """Two names: by the module common to all makers of the units (heads: to all weights), and by the first maker."""
    wide = [name for name, _ in where if graph.states[name].dim() > 1] or [name for name, _ in where]
    makers = [name for name in wide if index in graph.made_by.get(name, ())] or wide
    chosen = makers if kind == "width" else wide
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
