"""Where the states of a program lie in its picture: layer by layer, with lines that pass layers between the boxes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pliant_runtime import Family

WIDE, HIGH, GAP, LAYER = 184, 46, 26, 118
"""Width and height of a state, the space between two, and from layer to layer, in user units."""
THREAD, MARGIN = 14, 60
"""Width of a line between boxes, and of the margins."""


def targets_of(family: Family, number: int) -> list[int]:
    """The states that a state's edges lead to."""
    step = family.program.states[number].step
    return [] if step is None else [edge.state for edge in step.next.edges]


@dataclass
class Spot:
    """A state, or a place where a line passes a layer."""

    layer: int
    state: int | None
    x: float = 0.0
    above: list["Spot"] = field(default_factory=list)

    @property
    def wide(self) -> int:
        """Its width."""
        return WIDE if self.state is not None else THREAD


@dataclass(frozen=True)
class Line:
    """One edge: the spots it goes through; `back` where it leads to an earlier state."""

    source: int
    side: int
    target: int
    spots: tuple[Spot, ...]
    back: bool


def _loops(family: Family) -> tuple[set[tuple[int, int]], list[int]]:
    """Edges (state, side) that close a loop, and the states in an order in which all others lead on."""
    closing: set[tuple[int, int]] = set()
    order: list[int] = []
    begun, ended = {family.entries[0].start_state}, set[int]()
    todo = [(family.entries[0].start_state, 0)]
    while todo:
        number, side = todo.pop()
        targets = targets_of(family, number)
        if side == len(targets):
            ended.add(number)
            order.insert(0, number)
            continue
        todo.append((number, side + 1))
        target = targets[side]
        if target in begun and target not in ended:
            closing.add((number, side))
        elif target not in begun:
            begun.add(target)
            todo.append((target, 0))
    return closing, order


def _layers(family: Family, closing: set[tuple[int, int]], order: Sequence[int]) -> list[int]:
    """The longest way to each state, loops left out."""
    found = [0] * len(family.program.states)
    for number in order:
        for side, target in enumerate(targets_of(family, number)):
            if (number, side) not in closing:
                found[target] = max(found[target], found[number] + 1)
    return found


def placed(family: Family) -> tuple[list[Spot], list[Line]]:
    """States and edges with places; states that are never reached lie in the first layer."""
    closing, order = _loops(family)
    depth = _layers(family, closing, order)
    spots = [Spot(layer, number) for number, layer in enumerate(depth)]
    layers: dict[int, list[Spot]] = defaultdict(list)
    for spot in spots:
        layers[spot.layer].append(spot)
    lines = []
    for number in range(len(spots)):
        for side, target in enumerate(targets_of(family, number)):
            way = [spots[number]]
            if (number, side) not in closing:
                for layer in range(depth[number] + 1, depth[target]):
                    thread = Spot(layer, None, above=[way[-1]])
                    layers[layer].append(thread)
                    way.append(thread)
                spots[target].above.append(way[-1])
            lines.append(Line(number, side, target, (*way, spots[target]), (number, side) in closing))
    for layer in sorted(layers):
        _order(layers[layer])
    left = min(spot.x - spot.wide / 2 for each in layers.values() for spot in each)
    for spot in (spot for each in layers.values() for spot in each):
        spot.x += MARGIN - left
    return spots, lines


def _order(spots: list[Spot]) -> None:
    """Places along a layer: each below those that lead to it, as far as they do not overlap."""
    wish = {id(spot): sum(s.x for s in spot.above) / len(spot.above) if spot.above else 0.0 for spot in spots}
    spots.sort(key=lambda spot: (wish[id(spot)], spot.state is None, spot.state or 0))
    for before, spot in zip([None, *spots], spots, strict=False):
        least = before.x + (before.wide + spot.wide) / 2 + GAP if before is not None else wish[id(spot)]
        spot.x = max(wish[id(spot)], least)
    drift = sum(spot.x - wish[id(spot)] for spot in spots) / len(spots)
    for spot in spots:
        spot.x -= drift


def outlets_of(lines: Sequence[Line]) -> dict[tuple[int, int], float]:
    """Where lines leave their boxes, from left to right as they lead on; lines that go back leave at the side."""
    found: dict[tuple[int, int], float] = {}
    sources: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        sources[line.source].append(line)
    for each in sources.values():
        down = sorted((line for line in each if not line.back), key=lambda line: line.spots[1].x)
        room = min(92.0, (WIDE - 8) / max(len(down), 1))
        for place, line in enumerate(down):
            found[line.source, line.side] = line.spots[0].x + (place - (len(down) - 1) / 2) * room
        found |= {(line.source, line.side): line.spots[0].x + WIDE / 2 for line in each if line.back}
    return found
