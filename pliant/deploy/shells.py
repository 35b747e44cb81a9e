"""Which units of a family's graph are shells: units that come and go together, and that only a sum brings together.

The units that sub-networks keep of one axis are nested: the smallest sub-network's are shell 0, what the next adds is
shell 1, and so on. Between the matrix product that makes the units and the one that sums over them every shell is a
small network of its own, so y = x + sum_j f(x A_j) B_j (feed-forward networks), and heads of attention are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.deploy.plain_graph import Array, Plain, Unfit, attribute, constant, is_product

Places = NDArray[np.int64]

POINTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "ThresholdedRelu", "Trunc", "Where",
    "IsNaN", "IsInf", "Celu", "Xor",
))  # fmt: skip
MOVING = frozenset((
    "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Reshape", "Shape", "Size", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze", "Range", "Tile", "Pad",
    "SplitToSequence", "SequenceAt",
))  # fmt: skip
ALONG_AXIS = frozenset(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"))
REDUCING = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"))


@dataclass(frozen=True)
class Kept:
    """What each sub-network keeps of a weight.

    Args:
        places: per sub-network (None where it lacks the weight) and axis the indices kept, None for all.
    """

    places: tuple[tuple[Places | None, ...] | None, ...]


@dataclass
class Part:
    """Units of one kind and the nodes that work on them.

    Args:
        nodes: their numbers, ascending.
        sets: the indices that are kept, per (weight, axis) from the smallest set to the largest.
        sizes: per sub-network the share of the units it keeps; None where it lacks the nodes.
        levels: per sub-network the largest shell it uses; None where it lacks the nodes.
        shares: size of each shell over the size of all.
        exits: nodes that sum over the units.
        joints: nodes that sum over the units of another part and make this one's: number to that part.
        asked: values that joints of other parts read.
    """

    nodes: list[int]
    sets: dict[tuple[str, int], list[Places]] = field(default_factory=dict)
    sizes: tuple[Fraction | None, ...] = ()
    levels: tuple[int | None, ...] = ()
    shares: list[Fraction] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    joints: dict[int, "Part"] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def shells(self) -> int:
        """How many there are, the smallest sub-network's included."""
        return len(self.shares)


@dataclass(frozen=True)
class Values:
    """Which values of the graph change with the size of the sub-network.

    Args:
        axes: per value the axes that do; empty for integers whose content does.
        ranks: number of axes of every value.
        whole: integers that describe shapes: their content does not depend on the weights.
        grown: per integer value the elements that change.
    """

    axes: Mapping[str, frozenset[int]]
    ranks: Mapping[str, int]
    whole: frozenset[str]
    grown: Mapping[str, Array]

    def __contains__(self, name: str) -> bool:
        return name in self.axes


def elastic_values(
    whole: Plain, own: Mapping[str, Array], laid: Sequence[tuple[Plain, Mapping[int, int], Any]]
) -> Values:
    """Compare every value of the largest graph with what it is in the smaller ones, on the same input.

    Args:
        whole: the largest graph.
        own: its values.
        laid: the smaller graphs, how they lie on the largest, and their values.
    """
    axes: dict[str, frozenset[int]] = {}
    grown: dict[str, Array] = {}
    for part, nodes, values in laid:
        for one, other in nodes.items():
            for name, twin in zip(whole.nodes[one].output, part.nodes[other].output, strict=True):
                if name:
                    _compare(name, own[name], values[twin], axes, grown)
    whole_numbers = frozenset(name for name, value in own.items() if value.dtype.kind in "iub")
    return Values(axes, {name: value.ndim for name, value in own.items()}, whole_numbers, grown)


def _compare(name: str, one: Array, other: Array, axes: dict[str, frozenset[int]], grown: dict[str, Array]) -> None:
    """Enter one value, where it differs between two sub-networks."""
    if one.ndim != other.ndim:
        raise Unfit(f"value {name!r} has {one.ndim} axes in one sub-network and {other.ndim} in another")
    found = frozenset(axis for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b)
    differs = one != other if one.dtype.kind in "iub" and not found else None
    if found or (differs is not None and differs.any()):
        axes[name] = axes.get(name, frozenset()) | found
    if differs is not None and differs.any():
        grown[name] = grown.get(name, False) | differs


def elastic_axes(kept: Kept) -> list[int]:
    """The axes of a weight of which some sub-network keeps only a part."""
    return sorted({axis for each in kept.places if each is not None for axis, p in enumerate(each) if p is not None})


def parts_of(whole: Plain, kept: Mapping[str, Kept], values: Values) -> list[Part]:
    """The parts of a graph that come in shells.

    Args:
        whole: the largest graph.
        kept: what the sub-networks keep of each weight of it.
        values: which values change their size.

    Raises:
        Unfit: something that is no shell, with the operator and what it does.
    """
    bends = {name: elastic_axes(item) for name, item in kept.items()}
    bends = {name: axes for name, axes in bends.items() if axes}
    roots: dict[str, str] = {}

    def find(name: str) -> str:
        while roots.setdefault(name, name) != name:
            name = roots[name]
        return name

    touched: dict[int, list[str]] = {}
    joints: dict[int, tuple[str, str]] = {}
    for number, node in enumerate(whole.nodes):
        read = [name for name in node.input if name in values or name in bends]
        made = [name for name in node.output if name in values]
        if not read and not made:
            continue
        weight = summed(whole, number, values, bends)
        if weight is not None and made:
            joints[number] = (node.input[0], made[0])
            touched[number] = [made[0]]
            continue
        _refuse(whole, number, values, bends, weight)
        touched[number] = [*read, *made]
        for name in touched[number][1:]:
            roots[find(name)] = find(touched[number][0])
    found: dict[str, Part] = {}
    for number, names in touched.items():
        found.setdefault(find(names[0]), Part([])).nodes.append(number)
    for number, (read_value, made_value) in joints.items():
        source, target = found[find(read_value)], found[find(made_value)]
        if source is target:
            raise Unfit(f"{whole.nodes[number].input[1]} sums over units and makes the same ones")
        target.joints[number] = source
        if read_value not in source.asked:
            source.asked.append(read_value)
    for part in found.values():
        _measure(part, whole, kept, bends)
        part.exits = [n for n in part.nodes if n not in part.joints and summed(whole, n, values, bends) is not None]
    for part in found.values():
        for number, source in part.joints.items():
            name = whole.nodes[number].input[1]
            axis = inner_axis(whole.nodes[number])
            source.sets[name, axis], sizes = _nested(name, axis, whole, kept[name])
            if tuple(sizes) != source.sizes:
                raise Unfit(f"units that {whole.weights[name].name} reads bend apart from those that are made for it")
    return list(found.values())


def inner_axis(node: Any) -> int:
    """The axis of a matrix product's weight that is summed over."""
    return 1 if attribute(node, "transB", 0) else 0


def summed(whole: Plain, number: int, values: Values, bends: Mapping[str, Sequence[int]]) -> str | None:
    """The weight with which a node sums over units; None where it does not."""
    node = whole.nodes[number]
    if not is_product(node) or node.input[0] not in values or node.input[1] not in bends:
        return None
    rank, weight = values.ranks[node.input[0]], str(node.input[1])
    if values.axes[node.input[0]] != {rank - 1} or attribute(node, "transA", 0):
        return None
    return weight if whole.weights[weight].array.ndim == 2 and inner_axis(node) in bends[weight] else None


def _refuse(whole: Plain, number: int, values: Values, bends: Mapping[str, Sequence[int]], weight: str | None) -> None:
    """Raises `Unfit` where a node mixes units, or is not known not to."""
    node = whole.nodes[number]
    names = [whole.weights[name].name for name in node.input if name in whole.weights]
    what = f"{node.op_type}{f' of {names[0]}' if names else ''}"
    made = [name for name in node.output if name in values]
    axes = [values.axes[name] for name in node.input if name in values.axes]
    bending = frozenset[int]().union(*axes) if axes else frozenset()
    if weight is not None:
        return
    if not made:
        if node.op_type in MOVING | POINTWISE and all(name in values.whole for name in node.output):
            return
        if node.op_type == "CastLike" and node.input[0] not in values:  # only the dtype is read of what bends
            return
        raise Unfit(f"{what} mixes units that bend")
    if node.op_type in POINTWISE | MOVING:
        return
    if is_product(node):
        _refuse_product(whole, node, values, bends, what)
        return
    rank = max((values.ranks[name] for name in node.input if name in values.ranks), default=0)
    if node.op_type in ALONG_AXIS:
        axis = attribute(node, "axis", -1) % max(rank, 1)
        along = {axis} if node.op_type in ("Softmax", "LogSoftmax") else set(range(axis, rank))
        if not along & bending:
            return
        raise Unfit(f"{what} mixes units that bend")
    if node.op_type in REDUCING:
        reduced = attribute(node, "axes")
        if reduced is None and len(node.input) > 1 and node.input[1] in whole.maker:
            given = constant(whole.nodes[whole.maker[node.input[1]]])
            reduced = None if given is None else given.ravel().tolist()
        if reduced is not None and not {int(axis) % rank for axis in reduced} & bending:
            return
        raise Unfit(f"{what} mixes units that bend")
    raise Unfit(f"{what} is no operator that shells are known to pass")


def _refuse_product(whole: Plain, node: Any, values: Values, bends: Mapping[str, Sequence[int]], what: str) -> None:
    """A product may make units (from a weight), or work inside each of them (the unit's axis is one of the batch)."""
    one, other = node.input[:2]
    if one in values and other in values:
        inside = values.ranks[one] - 2 not in values.axes[one] and values.ranks[one] - 1 not in values.axes[one]
        right = values.ranks[other] - 2 not in values.axes[other] and values.ranks[other] - 1 not in values.axes[other]
        if node.op_type == "MatMul" and inside and right:
            return
    elif other in bends and one not in values:
        if list(bends[other]) == [1 - inner_axis(node)] and not attribute(node, "transA", 0):
            return
    elif (
        one in values
        and other not in bends
        and node.op_type == "MatMul"
        and values.ranks[one] - 1 not in values.axes[one]
    ):
        return
    raise Unfit(f"{what} mixes units that bend")


def _measure(part: Part, whole: Plain, kept: Mapping[str, Kept], bends: Mapping[str, Sequence[int]]) -> None:
    """Fill sets, levels and shares. Raises `Unfit` where the sets are not nested or do not belong together."""
    shares: dict[tuple[str, int], list[Fraction | None]] = {}
    for number in part.nodes:
        node = whole.nodes[number]
        for name in node.input:
            for axis in bends.get(name, ()):
                if number in part.joints and name == node.input[1] and axis == inner_axis(node):
                    continue  # this axis is of the part that the joint reads
                part.sets[name, axis], shares[name, axis] = _nested(name, axis, whole, kept[name])
    if not shares:
        raise Unfit(f"sizes at {whole.nodes[part.nodes[0]].op_type} bend without a weight that does")
    first = next(iter(shares.values()))
    for (name, axis), each in shares.items():
        if each != first:
            other = next(iter(shares))
            raise Unfit(
                f"units of {whole.weights[name].name} (axis {axis}) and of {whole.weights[other[0]].name} bend apart "
                "inside one block"
            )
    part.sizes = tuple(first)
    sizes = sorted({share for share in first if share is not None} | {Fraction(1)})
    part.levels = tuple(None if share is None else sizes.index(share) for share in first)
    part.shares = [large - small for small, large in zip([Fraction(0), *sizes], sizes, strict=False)]


def _nested(name: str, axis: int, whole: Plain, kept: Kept) -> tuple[list[Places], list[Fraction | None]]:
    size = whole.weights[name].array.shape[axis]
    everything = np.arange(size)
    mine: list[Places | None] = [_places(each, axis, everything) for each in kept.places]
    distinct: dict[int, Places] = {len(places): places for places in mine if places is not None} | {size: everything}
    shells: list[Places] = []
    before: Places = np.zeros(0, dtype=np.int64)
    for count in sorted(distinct):
        places = distinct[count]
        if not np.isin(before, places).all():
            raise Unfit(f"the units that sub-networks keep of {whole.weights[name].name} are not nested")
        shells.append(np.setdiff1d(places, before))
        before = places
    for each in mine:
        if each is not None and not np.array_equal(np.sort(each), np.sort(distinct[len(each)])):
            raise Unfit(f"two sub-networks keep different units of {whole.weights[name].name}")
    return shells, [None if each is None else Fraction(len(each), size) for each in mine]


def _places(each: tuple[Places | None, ...] | None, axis: int, everything: Places) -> Places | None:
    if each is None:
        return None
    found = each[axis]
    return everything if found is None else found
