"""Two graphs of one family laid on each other: which node of the largest is which of a smaller one, blocks left out."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice, product
from typing import Any

from onnx import defs, helper

from pliant.deploy.plain_graph import Plain, Unfit, constant

Span = tuple[str, str]
"""What goes into a block and what comes out of it; without the block the one takes the place of the other."""


def match(whole: Plain, part: Plain, bypassed: Mapping[str, str]) -> dict[int, int]:
    """The node of `part` that each node of `whole` becomes, when `bypassed` values are replaced by others.

    Raises:
        Unfit: the graphs differ in more than sizes and the blocks left out.
    """
    known: dict[str, str] = {}
    nodes: dict[int, int] = {}
    left = [(one.name, other.name) for one, other in zip(whole.outputs, part.outputs, strict=True)]
    while left:
        one, other = left.pop()
        while one in bypassed:
            one = bypassed[one]
        if one in known:
            if known[one] != other:
                raise Unfit(f"value {one!r} is used in another way in a smaller sub-network")
            continue
        known[one] = other
        if one in whole.maker and other in part.maker:
            first, second = whole.maker[one], part.maker[other]
            nodes[first] = second
            left += _inputs(whole, first, part, second)
        elif one in whole.weights and other in part.weights:
            if whole.weights[one].name != part.weights[other].name:
                raise Unfit(f"a smaller sub-network has {part.weights[other].name} for {whole.weights[one].name}")
        elif one != other:
            raise Unfit(f"a smaller sub-network has {other!r} where the largest has {one!r}")
    return nodes


def _inputs(whole: Plain, first: int, part: Plain, second: int) -> list[tuple[str, str]]:
    one, other = whole.nodes[first], part.nodes[second]
    if (one.op_type, len(one.input)) != (other.op_type, len(other.input)):
        raise Unfit(f"a smaller sub-network has {other.op_type} where the largest has {one.op_type}")
    if constant(one) is None:
        kinds = [_attributes(node) for node in (one, other)]
        if kinds[0] != kinds[1]:
            raise Unfit(f"{one.op_type} has {kinds[1]} in a smaller sub-network, {kinds[0]} in the largest"[:300])
    return list(zip(one.input, other.input, strict=True))


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node, those it leaves out at their defaults: exporters write some of these, or not."""
    found = {}
    if defs.has(node.op_type, node.domain):
        known = defs.get_schema(node.op_type, domain=node.domain).attributes
        found = {name: _told(item.default_value) for name, item in known.items() if item.default_value.name}
    return found | {item.name: _told(item) for item in node.attribute}


def _told(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.SerializeToString() if hasattr(value, "SerializeToString") else value


def alive(whole: Plain, bypassed: Mapping[str, str]) -> set[int]:
    """The nodes that the outputs still need when `bypassed` values are replaced."""
    found: set[int] = set()
    left = [item.name for item in whole.outputs]
    while left:
        name = left.pop()
        while name in bypassed:
            name = bypassed[name]
        number = whole.maker.get(name)
        if number is not None and number not in found:
            found.add(number)
            left += whole.nodes[number].input
    return found


def candidates(whole: Plain, lost: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[Span]:
    """Places where a block may be left out that holds the weights `lost`, the likeliest first.

    A block goes from a value to another of the same shape; without it none of its weights is read. First come those
    whose input nothing else reads.
    """
    holders = [
        number for number, node in enumerate(whole.nodes) if any(_state(whole, name) in lost for name in node.input)
    ]
    if not holders:
        return []
    ends = list(islice(_after(whole, holders[-1]), 24))
    starts = list(islice(_before(whole, holders[0]), 24))
    readers: dict[str, set[int]] = {}
    for number, node in enumerate(whole.nodes):
        for name in node.input:
            readers.setdefault(name, set()).add(number)
    clean: list[Span] = []
    others: list[Span] = []
    for end, start in product(ends, starts):
        if start == end or not shapes.get(start) or shapes.get(start) != shapes.get(end):
            continue
        rest = alive(whole, {end: start})
        if any(number in rest for number in holders):
            continue
        (others if readers.get(start, set()) & rest else clean).append((start, end))
    return [*clean, *others]


def _state(whole: Plain, name: str) -> str | None:
    return whole.weights[name].name if name in whole.weights else None


def _after(whole: Plain, begin: int) -> Iterator[str]:
    """Values that depend on a node, nearest first."""
    reached = set(whole.nodes[begin].output)
    yield from whole.nodes[begin].output
    for node in whole.nodes[begin + 1 :]:
        if reached & set(node.input):
            reached |= set(node.output)
            yield from node.output


def _before(whole: Plain, begin: int) -> Iterator[str]:
    """Values that a node depends on, nearest first."""
    needed = set(whole.nodes[begin].input)
    for number in range(begin - 1, -1, -1):
        node = whole.nodes[number]
        if needed & set(node.output):
            yield from (name for name in node.output if name in needed)
            needed |= set(node.input)
    yield from (item.name for item in whole.inputs if item.name in needed)


def spans(
    whole: Plain, parts: list[tuple[Plain, Collection[str]]], lost: Mapping[str, Collection[str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Span], list[dict[int, int]]]:  # fmt: skip
    """Where every block lies, and how each smaller graph lies on the whole one.

    Args:
        whole: the largest graph.
        parts: smaller graphs, each with the knobs of the blocks it lacks.
        lost: per knob the weights that go with its block.
        shapes: of all values of `whole`.

    Raises:
        Unfit: no choice of places explains all graphs.
    """
    choices = {knob: candidates(whole, lost[knob], shapes) for knob in sorted({k for _, gone in parts for k in gone})}
    for knob, found in choices.items():
        if not found:
            raise Unfit(f"the block of {knob} was not found in the graph")
    places: dict[str, Span] = {}
    for part, gone in sorted(parts, key=lambda item: len(item[1])):
        places |= _places(whole, part, {knob: [places[knob]] if knob in places else choices[knob] for knob in gone})
    return places, [match(whole, part, {places[knob][1]: places[knob][0] for knob in gone}) for part, gone in parts]


def _places(whole: Plain, part: Plain, choices: Mapping[str, list[Span]]) -> dict[str, Span]:
    """One choice of places that explains a graph. Raises `Unfit` where none does."""
    reason = "the graphs of the sub-networks do not lie on each other"
    for chosen in islice(product(*choices.values()), 256):
        places = dict(zip(choices, chosen, strict=True))
        try:
            match(whole, part, {end: start for start, end in places.values()})
            return places
        except Unfit as unfit:
            reason = str(unfit)
    raise Unfit(reason)
