"""Circuit: a traced network as the stations of a diagram, with the axes that each of them touches.

A station is a call as a reader thinks of it: no weights (they belong to the call that reads them), no bookkeeping, and
runs of reshapes and permutations as one bend of the wires.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pliant.diagram.text import Key, call_text, sizes
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Node, Ref, argument, refs, resolve_target

Pairs = frozenset[tuple[int, int]]
"""Wires that only pass: (axis of the first source, axis of the result)."""

_PERMUTES = {"permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "adjoint"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"}
_COPIES = {"contiguous", "clone", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "slice", "identity",
           "type_as"}  # fmt: skip
_WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
             "conv_transpose3d", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "embedding",
             "lstm", "gru", "rnn_tanh", "rnn_relu", "addmm", "prelu", "bilinear"}  # fmt: skip
_ELEMENTWISE = {"dropout", "alpha_dropout", "to", "hardswish", "prelu", "log_sigmoid", "__and__", "__or__"}
"""Operators on single elements that torch does not tag as such."""
_SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "pow": "^", "maximum": "max", "minimum": "min",
          "rsub": "−", "__and__": "and", "__or__": "or", "eq": "=", "where": "where"}  # fmt: skip
_ATTENTION = "scaled_dot_product_attention"
_LABELS = {_ATTENTION: "attention", "cat": "concat", "embedding": "embed", "_softmax": "softmax", "matmul": "product",
           "bmm": "product", "mm": "product", "addmm": "linear", "select": "pick", "unbind": "split", "chunk": "split",
           "split_with_sizes": "split", "batch_norm": "BN", "layer_norm": "LN", "group_norm": "GN",
           "instance_norm": "IN", "rms_norm": "RMS", "_log_softmax": "log softmax", "pixel_shuffle": "shuffle",
           "constant_pad_nd": "pad"}  # fmt: skip


@dataclass
class Station:
    """One step of the diagram.

    Args:
        name: of the last node in it.
        nodes: the calls it stands for; one, except for bends.
        look: "box" (acts on some axes), "pill" (acts on every element alone), "bend" (rearranges axes), "part" (one
            of several results) or "port" (an input or output).
        label: lines of text.
        value: what it gives: (node, index of the result).
        sources: stations it reads, by their place in the list.
        constants: names of weights and constants it reads beyond those that belong to its operator.
        enters, leaves: axes of the first source, and of the result, that it acts on.
        passes: the other axes.
    """

    name: str
    nodes: tuple[Node, ...]
    look: str
    label: tuple[str, ...]
    value: Key
    sources: list[int] = field(default_factory=list)
    constants: tuple[str, ...] = ()
    enters: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    passes: Pairs = frozenset()

    @property
    def module(self) -> str:
        """Path of the module that made the call."""
        return self.nodes[-1].module


class Circuit:
    """The stations of a graph in program order, from its inputs to its outputs.

    Attributes:
        graph: what was drawn from.
        stations: every one leads to an output.
        names: station -> a name for each axis of its value ("batch", "channel", "head", ...).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = sizes(graph)
        self._nodes = {node.name: node for node in graph.program}
        self._taken = Counter(n.args[0].name for n in graph.program if n.target == "operator.getitem"
                              and isinstance(n.args[0], Ref))  # fmt: skip
        self.stations: list[Station] = []
        self._at: dict[str, int] = {}
        self._constant: dict[str, str] = {}
        for node in graph.program:
            self._add(node)
        self._add_outputs()
        self._prune()
        self._name_parts()
        self.names = AxisNames(self).found

    # -- stations ---------------------------------------------------------------------------------------------------

    def shape(self, key: Key) -> tuple[int, ...]:
        """The example's shape of a value."""
        return self.graph.analysis.shapes.get(key, ())

    def size(self, key: Key, axis: int) -> str:
        """The length of an axis, with the batch as N."""
        return str(self.sizes[key][axis])

    def groups(self, key: Key, axis: int) -> tuple[int, ...]:
        """Groups of an axis in the order of appearance, -1 for fixed indices; empty where it cannot bend."""
        content = self.graph.analysis.axes.get((*key, axis))
        return () if content is None else tuple(dict.fromkeys(content.group.tolist()))

    def _add(self, node: Node) -> None:
        if node.kind == "state":
            self._constant[node.name] = node.target
            return
        if node.kind == "input":
            self._put(Station(node.name, (node,), "port", (node.target,), (node.name, 0)))
            return
        operands = [ref.name for ref in refs((node.args, node.kwargs)) if ref.name != TRAINING]
        if (node.name, 0) not in self.sizes:
            return  # a number that depends on the batch
        data = [self._at[name] for name in operands if name in self._at]
        if not data:
            named = [self._constant[name] for name in operands if self._constant.get(name)]
            self._constant[node.name] = named[0] if len(set(named)) == 1 else ""
            return
        if node.target == "operator.getitem":
            self._take(node, data[0])
        elif self._silent(node, data[0]):
            self._at[node.name] = data[0]
        elif _tail(node) in _PERMUTES | _RESHAPES:
            self._bend(node, data[0])
        else:
            constants = [self._constant[n] or "constant" for n in operands if n in self._constant]
            own = () if _tail(node) in _WEIGHTED else tuple(dict.fromkeys(constants))
            self._put(self._call(node, data, own))

    def _put(self, station: Station) -> None:
        self._at[station.name] = len(self.stations)
        self.stations.append(station)

    def _take(self, node: Node, source: int) -> None:
        """One of several results: the station's own value where only one is used, else a part."""
        owner = self.stations[source]
        index = node.args[1]
        if self._taken[owner.name] == 1:
            shape, old = self.shape((owner.name, index)), self.shape(owner.value)
            owner.value = (owner.name, index)
            if len(shape) == len(old) == 3 and _tail(owner.nodes[-1]) in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
                owner.passes, owner.leaves = frozenset({(0, 1)}), frozenset({0, 2})
            self._at[node.name] = source
            return
        same = frozenset((axis, axis) for axis in range(len(self.shape((node.name, 0)))))
        self._put(
            Station(node.name, (node,), "part", (f"part {index + 1}",), (node.name, 0), [source], (), passes=same)
        )

    def _silent(self, node: Node, source: int) -> bool:
        kept = self.shape((node.name, 0)) == self.shape(self.stations[source].value)
        return kept and _tail(node) in _COPIES | _RESHAPES

    def _bend(self, node: Node, source: int) -> None:
        before = self.shape(self.stations[source].value)
        after = self.shape((node.name, 0))
        if _tail(node) in _PERMUTES:
            pairs = _permuted(node, len(before))
        elif _tail(node) == "expand":
            shift = len(after) - len(before)
            pairs = frozenset((axis, axis + shift) for axis in range(len(before)))
        else:
            pairs = _reshaped(before, after)
        last = self.stations[source]
        if last.look == "bend" and source == len(self.stations) - 1 and self._reads[last.name] == 1:
            pairs = frozenset((a, c) for a, b in last.passes for b2, c in pairs if b == b2)
            last.nodes, last.passes, last.value = (*last.nodes, node), pairs, (node.name, 0)
            last.name = node.name
            self._at[node.name] = source
            return
        self._put(Station(node.name, (node,), "bend", (), (node.name, 0), [source], passes=pairs))

    @cached_property
    def _reads(self) -> Counter[str]:
        counted = Counter(r.name for n in self.graph.program for r in set(refs((n.args, n.kwargs))))
        counted.update(ref.name for ref in refs(self.graph.program.output))
        return counted

    def _call(self, node: Node, data: list[int], constants: tuple[str, ...]) -> Station:
        before = self.shape(self.stations[data[0]].value)
        after = self.shape((node.name, 0))
        acts = ACTS.get(_tail(node))
        found = acts(node, before, after) if acts is not None else None
        if found is None:
            others = [self.shape(self.stations[i].value) for i in data[1:]] + list(self._constant_shapes(node))
            look, enters, leaves = _unlisted(node, before, after, others)
        else:
            look = "box"
            enters, leaves = (frozenset(a % max(n, 1) for a in axes if -n <= a < n)
                              for axes, n in zip(found, (len(before), len(after)), strict=True))  # fmt: skip
        free_in = [a for a in range(len(before)) if a not in enters]
        free_out = [a for a in range(len(after)) if a not in leaves]
        if look == "pill":
            free_in = free_out = list(range(len(after)))
        if len(free_in) != len(free_out):
            enters, leaves = frozenset(range(len(before))), frozenset(range(len(after)))
            free_in = free_out = []
        passes = frozenset(zip(free_in, free_out, strict=True))
        label = _label(node, before, self.shape)
        return Station(node.name, (node,), look, label, (node.name, 0), data, constants, enters, leaves, passes)

    def _constant_shapes(self, node: Node) -> Iterator[tuple[int, ...]]:
        for ref in refs((node.args, node.kwargs)):
            if ref.name in self._constant:
                yield self.shape((ref.name, 0))

    def _add_outputs(self) -> None:
        found = [ref.name for ref in refs(self.graph.program.output)]
        keys = getattr(self.graph.program.output, "keys", None)
        names = list(keys) if isinstance(keys, list) and len(keys) == len(found) else []
        for i, name in enumerate(found):
            if name in self._at:
                source = self._at[name]
                value = self.stations[source].value
                label = names[i] if names else "output" if len(found) == 1 else f"output {i + 1}"
                same = frozenset((axis, axis) for axis in range(len(self.shape(value))))
                self.stations.append(
                    Station(f"{name}>", (self._nodes[name],), "port", (label,), value, [source], passes=same)
                )

    def _prune(self) -> None:
        """Only what leads to an output stays."""
        alive = {i for i, station in enumerate(self.stations) if station.name.endswith(">")}
        for i in reversed(range(len(self.stations))):
            if i in alive:
                alive.update(self.stations[i].sources)
        place = {old: new for new, old in enumerate(sorted(alive))}
        self.stations = [self.stations[i] for i in sorted(alive)]
        for station in self.stations:
            station.sources = [place[i] for i in station.sources]

    def _name_parts(self) -> None:
        """Parts that only an attention call reads are its query, key and value."""
        readers: list[list[int]] = [[] for _ in self.stations]
        for i, station in enumerate(self.stations):
            for source in station.sources:
                readers[source].append(i)
        for i, station in enumerate(self.stations):
            last = i
            while station.look == "part" and len(readers[last]) == 1:
                reader = self.stations[readers[last][0]]
                if reader.label[:1] == (_LABELS[_ATTENTION],):
                    station.label = (("query", "key", "value")[min(2, reader.sources.index(last))],)
                if reader.look != "bend":
                    break
                last = readers[last][0]

    def text(self, index: int) -> str:
        """What a station computes, as text without names: equal for equal stations."""
        station = self.stations[index]
        calls = ";".join(call_text(n, lambda _: "%") if n.kind == "call" else n.kind for n in station.nodes)
        shape = ",".join(map(str, self.sizes[station.value]))
        return f"{station.look} {calls} {len(station.constants)} {len(station.sources)} [{shape}]"


def _tail(node: Node) -> str:
    """`relu` for `aten.relu_.default`."""
    tail = node.packet.rpartition(".")[2]
    return tail if tail.startswith("__") else tail.rstrip("_") or tail


# -- which axes an operator acts on ---------------------------------------------------------------------------------

Shape = tuple[int, ...]
Acts = Callable[[Node, Shape, Shape], tuple[Sequence[int], Sequence[int]] | None]


def _last(count: int) -> Acts:
    return lambda node, before, after: (range(-count, 0), range(-count, 0))


def _from(first: int) -> Acts:
    return lambda node, before, after: (range(first, len(before)), range(first, len(after)))


def _normalised(node: Node, before: Shape, after: Shape) -> tuple[Sequence[int], Sequence[int]]:
    count = len(argument(node, "normalized_shape", [0]))
    return range(-count, 0), range(-count, 0)


def _along(node: Node, before: Shape, after: Shape) -> tuple[Sequence[int], Sequence[int]] | None:
    """The axes that the argument `dim` names; they are gone where a reduction drops them."""
    given = argument(node, "dim", 0 if _tail(node) in ("cat", "select", "unbind", "split", "chunk", "slice") else None)
    dims = list(range(len(before))) if given is None or given == [] else given if isinstance(given, list) else [given]
    dims = [dim % max(len(before), 1) for dim in dims]
    return dims, dims if len(after) == len(before) else []


def _padded(node: Node, before: Shape, after: Shape) -> tuple[Sequence[int], Sequence[int]]:
    axes = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return axes, axes


def _embedded(node: Node, before: Shape, after: Shape) -> tuple[Sequence[int], Sequence[int]]:
    return (), (len(after) - 1,)


def _matrix(node: Node, before: Shape, after: Shape) -> tuple[Sequence[int], Sequence[int]]:
    return range(-min(2, len(before)), 0), range(len(before) - min(2, len(before)), len(after))


ACTS: dict[str, Acts] = {
    **dict.fromkeys(("linear", "addmm", "glu", "rms_norm"), _last(1)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d", "group_norm", "lstm", "gru", "rnn_tanh", "rnn_relu"), _from(1)),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d",
                     "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
                     "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d",
                     "upsample_bicubic2d", "upsample_linear1d", "instance_norm"), _from(2)),
    "batch_norm": lambda node, before, after: ((1,), (1,)),
    "layer_norm": _normalised,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "mean", "sum", "amax", "amin", "max", "min",
                     "var", "std", "cat", "select", "unbind", "split", "split_with_sizes", "chunk", "slice", "cumsum",
                     "argmax", "topk", "sort", "index_select", "gather", "flip", "roll", "unfold", "norm",
                     "linalg_vector_norm", "logsumexp", "prod", "narrow"), _along),
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _padded),
    "embedding": _embedded,
    **dict.fromkeys(("matmul", "bmm", "mm", "scaled_dot_product_attention"), _matrix),
}  # fmt: skip


def _unlisted(
    node: Node, before: Shape, after: Shape, others: Sequence[Shape]
) -> tuple[str, frozenset[int], frozenset[int]]:
    """Look and axes of an operator that is not in the table.

    torch tags the operators that act on every element alone. Any other is taken to act on all axes from the first one
    whose size it changes, or on all where it changes none: more than it may do, never less.
    """
    fits = len(before) == len(after) and all(a in (1, b) for a, b in zip(before, after, strict=True))
    tags = getattr(resolve_target(node.target), "tags", ())
    if fits and (torch.Tag.pointwise in tags or _tail(node) in _ELEMENTWISE):
        axes = set(range(len(after)))
        for shape in (*others, before) if others else ():  # an operand of size 1 on an axis is broadcast along it
            axes &= {len(after) - len(shape) + i for i, n in enumerate(shape) if n > 1 or after[i - len(shape)] == 1}
        return "pill", frozenset(axes), frozenset(axes)
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    return "box", frozenset(range(same, len(before))), frozenset(range(same, len(after)))


def _permuted(node: Node, count: int) -> Pairs:
    """Where each axis goes, by running the operator on axes of different sizes."""
    probe = torch.empty([axis + 2 for axis in range(count)], device="meta")
    moved = resolve_target(node.target)(probe, *node.args[1:], **node.kwargs)
    return frozenset((size - 2, axis) for axis, size in enumerate(moved.shape))


def _reshaped(before: Shape, after: Shape) -> Pairs:
    """Which axes of a reshape are made of which, by common factors from the left; axes of size 1 only pair alone."""
    pairs: set[tuple[int, int]] = set()
    i = j = 0
    left, right = [*before, 1][0], [*after, 1][0]
    while i < len(before) and j < len(after):
        shared = math.gcd(left, right)
        if left == right or shared > 1:
            pairs.add((i, j))
        elif left > 1 and right > 1:  # no common factor: everything from here on is mixed
            return frozenset(pairs | {(a, b) for a in range(i, len(before)) for b in range(j, len(after))})
        left, right = left // shared, right // shared
        ends = left == 1, right == 1 and (left > 1 or shared > 1 or before[i] == after[j])
        if ends[0]:
            i, left = i + 1, before[i + 1] if i + 1 < len(before) else 1
        if ends[1]:
            j, right = j + 1, after[j + 1] if j + 1 < len(after) else 1
    return frozenset(pairs)


# -- text -----------------------------------------------------------------------------------------------------------


def _times(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def _label(node: Node, before: Shape, shape_of: Callable[[Key], Shape]) -> tuple[str, ...]:
    tail = _tail(node)
    if tail in _SIGNS:
        number = next((arg for arg in node.args[:2] if isinstance(arg, int | float)), None)
        return (f"{_SIGNS[tail]} {number:.3g}" if number is not None else _SIGNS[tail],)
    if tail.startswith("conv"):
        weight = argument(node, "weight")
        kernel = shape_of((weight.name, 0))[2:] if isinstance(weight, Ref) else ()
        return _conv_label(node, before, kernel)
    name = _LABELS.get(tail, tail.strip("_").replace("_with_indices", "").replace("_", " "))
    if "pool" in tail and not tail.startswith("adaptive"):
        return name.rstrip("123d ") if name[-1] == "d" else name, _times(argument(node, "kernel_size", []))
    if tail.startswith(("adaptive", "upsample")):
        words = name.rstrip("d").rstrip("123").replace("adaptive", "").split()
        return (" ".join(words),)
    if tail == "scaled_dot_product_attention" and argument(node, "is_causal", False):
        return name, "causal"
    if tail in ("lstm", "gru"):
        layers, both = argument(node, "num_layers", 1), argument(node, "bidirectional", False)
        return tuple(t for t in (name, f"{layers} layers" if layers > 1 else "", "both ways" if both else "") if t)
    if tail == "select":
        return (f"{name} {argument(node, 'index')}" if isinstance(argument(node, "index"), int) else name,)
    return (name,)


def _conv_label(node: Node, before: Shape, kernel: Shape) -> tuple[str, ...]:
    stride, groups = argument(node, "stride", [1]), argument(node, "groups", 1)
    dilation = argument(node, "dilation", [1])
    lines = ["conv up" if "transpose" in node.packet else "conv", _times(kernel)]
    if groups > 1:
        lines.append("depthwise" if len(before) > 1 and groups == before[1] else f"{groups} groups")
    if any(s != 1 for s in stride):
        lines.append(f"stride {stride[0]}")
    if any(d != 1 for d in dilation):
        lines.append(f"dilation {dilation[0]}")
    return tuple(lines)


class AxisNames:
    """A name for every axis of every station: what the operators say of their results, carried along the wires."""

    _SPACE = ("height", "width", "depth", "time")

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.found: list[tuple[str, ...]] = []
        self._heads = {i for i, group in enumerate(circuit.graph.groups) if group.kind == "heads"}
        for i, station in enumerate(circuit.stations):
            named = self._input(i, station) if not station.sources else self._result(station)
            self.found.append(tuple("batch" if self._is_batch(station.value, a) else n for a, n in enumerate(named)))

    def _is_batch(self, key: Key, axis: int) -> bool:
        size = self.circuit.sizes[key][axis]
        return size.per_row == 1 and size.constant == 0

    def _input(self, index: int, station: Station) -> list[str]:
        count = len(self.circuit.shape(station.value))
        reader = next((s for s in self.circuit.stations if index in s.sources), None)
        tail = _tail(reader.nodes[0]) if reader else ""
        spatial = ["height", "width", "depth"] if count > 3 else ["time"]
        if tail.startswith("conv") or count > 3:
            return ["batch", "channel", *spatial][:count]
        if tail == "embedding":
            return ["batch", "sequence", "part"][:count]
        return ["batch", "feature"] if count == 2 else ["batch", "sequence", "feature"][:count]

    def _result(self, station: Station) -> list[str]:
        source = self.found[station.sources[0]]
        count = len(self.circuit.shape(station.value))
        tail = _tail(station.nodes[-1])
        names = [self._passed(station, axis, source) for axis in range(count)]
        acted_in, acted_out = sorted(station.enters), sorted(station.leaves)
        if len(acted_in) == len(acted_out):
            for a, b in zip(acted_in, acted_out, strict=True):
                names[b] = source[a] if a < len(source) else names[b]
        if tail == "embedding":
            names[-1] = "channel"
        if tail in ("lstm", "gru") and station.value[1]:
            names = ["layer", "batch", "feature"]
        return names

    def _passed(self, station: Station, axis: int, source: tuple[str, ...]) -> str:
        origins = sorted(a for a, b in station.passes if b == axis and a < len(source))
        names = [self._piece(station, a, axis, source[a]) for a in origins]
        if len(names) <= 1:
            return names[0] if names else ""
        if set(names) <= set(self._SPACE):
            return "position"
        if {"head", "dim"} <= set(names):
            return "channel"
        return "·".join(names[:2]) if "batch" in names else "feature"

    def _piece(self, station: Station, origin: int, axis: int, name: str) -> str:
        """What the part of an axis is called that goes into another one."""
        pieces = sorted(b for a, b in station.passes if a == origin)
        if len(pieces) == 1 or station.look != "bend":
            return name
        others = [part for part in name.split("·") if part != "batch"]
        if "·" in name and others:
            return others[0]
        if self._heads & set(self.circuit.groups(station.value, axis)):
            return "head"
        return "dim" if axis == pieces[-1] else "part"
