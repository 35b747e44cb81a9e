"""Layout: where the stations of a diagram stand.

A diagram is read like a score: from left to right in lines. Between two stations that every path runs through lies
either nothing, or branches in parallel (lanes, one below the other), or a path with a shortcut, which is drawn as a
loop above it. What is left, in a network that is not built of these, becomes loops too, so that every network can be
drawn.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP = 18.0
"""Between two wires, in user units."""
TRACK = 15.0
"""Height that a loop adds."""
LANE = 22.0
"""Between two lanes."""

Edge = tuple[int, int]
START, END = -1, 10**9
"""Stand-ins for what is before the inputs and after the outputs."""


@dataclass
class Lanes:
    """Branches in parallel; an empty one is a bare bundle of wires."""

    branches: "list[list[Item]]"


Item = int | Lanes


@dataclass
class Plan:
    """A network as items in a row, all edges, and those of them that are drawn as loops."""

    items: list[Item]
    edges: list[Edge]
    loops: list[Edge]


def stations_of(items: Iterable[Item]) -> list[int]:
    """Every station in nested items, in drawing order."""
    found: list[int] = []
    for item in items:
        found += [item] if isinstance(item, int) else stations_of(i for branch in item.branches for i in branch)
    return found


def plan(nodes: Sequence[int], edges: Sequence[Edge]) -> Plan:
    """Rows, lanes and loops of a network.

    Args:
        nodes: stations in topological order.
        edges: between them, and from `START` and to `END`.
    """
    loops: list[Edge] = []
    unique = list(dict.fromkeys(edges))
    return Plan(_row(list(nodes), unique, START, END, loops), unique, loops)


def _row(nodes: list[int], edges: list[Edge], first: int, last: int, loops: list[Edge]) -> list[Item]:
    """Items from `first` to `last`, both exclusive: stations on every path, and what lies between them."""
    place = {node: i for i, node in enumerate(nodes)} | {first: -1, last: len(nodes)}
    over = [0] * (len(nodes) + 1)
    for u, w in edges:
        if place[w] - place[u] > 1:
            over[place[u] + 1] += 1
            over[place[w]] -= 1
    stops, depth = [first], 0
    for i, node in enumerate(nodes):
        depth += over[i]
        if depth == 0:
            stops.append(node)
    stops.append(last)
    items: list[Item] = []
    for a, b in pairwise(stops):
        inside = nodes[place[a] + 1 : place[b]]
        if inside:
            own = [e for e in edges if place[a] <= place[e[0]] and place[e[1]] <= place[b]]
            items += _between(inside, own, a, b, loops)
        if b != last:
            items.append(b)
    return items


def _between(nodes: list[int], edges: list[Edge], a: int, b: int, loops: list[Edge]) -> list[Item]:
    """Items between two neighbouring stations that every path runs through."""
    direct = [edge for edge in edges if edge == (a, b)]
    loops += direct
    edges = [edge for edge in edges if edge != (a, b)]
    parts = _parts(nodes, edges)
    if len(parts) > 1:
        rows = [_row(part, [e for e in edges if e[0] in part or e[1] in part], a, b, loops) for part in parts]
        lengths = [len(stations_of(row)) for row in rows]
        if max(lengths) > 2 * lengths[0]:  # the main path goes on top, whichever the program has first
            rows.insert(0, rows.pop(lengths.index(max(lengths))))
        return [Lanes(rows)]
    if direct:
        return _row(nodes, edges, a, b, loops)
    place = {node: i for i, node in enumerate(nodes)} | {a: -1, b: len(nodes)}
    out, into = Counter(u for u, _ in edges), Counter(w for _, w in edges)
    spare = [e for e in edges if out[e[0]] > 1 and into[e[1]] > 1 and e[0] != START and e[1] != END]
    if spare:
        chosen = max(spare, key=lambda e: place[e[1]] - place[e[0]])
        loops.append(chosen)
        return _row(nodes, [e for e in edges if e != chosen], a, b, loops)
    chain = {*zip([a, *nodes], [*nodes, b], strict=True)}
    loops += [e for e in edges if e not in chain and e[0] != START and e[1] != END]
    return list(nodes)


def _parts(nodes: list[int], edges: list[Edge]) -> list[list[int]]:
    """Weakly connected parts, each in order."""
    parent = {node: node for node in nodes}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for u, w in edges:
        if u in parent and w in parent:
            parent[root(u)] = root(w)
    found: dict[int, list[int]] = {}
    for node in nodes:
        found.setdefault(root(node), []).append(node)
    return list(found.values())


# -- coordinates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A station's own size: box, space after it, wires, and what hangs below it (all in user units but the wires)."""

    box: float
    after: float
    wires: int
    below: float = 0.0


@dataclass(frozen=True)
class Spot:
    """Where a station stands in its line: the box's left and right side, the lane's first wire, and its line."""

    left: float
    right: float
    y: float
    line: int = 0


@dataclass
class Block:
    """Placed items: extents above and below the first wire, spots, loops with their heights, and the skyline."""

    width: float = 0.0
    up: float = 10.0
    down: float = 10.0
    spots: dict[int, Spot] = field(default_factory=dict)
    loops: dict[Edge, float] = field(default_factory=dict)
    sky: list[tuple[float, float, float]] = field(default_factory=list)

    def height_over(self, left: float, right: float) -> float:
        """How far up things reach between two places."""
        return max([h for a, b, h in self.sky if a < right and b > left], default=10.0)

    def raise_loop(self, edge: Edge, left: float, right: float, track: float) -> None:
        """Put a loop over everything between two places."""
        height = self.height_over(left, right) + track
        self.loops[edge] = height
        self.sky.append((left, right, height))
        self.up = max(self.up, height)


FORK = 26.0
"""Space in which wires spread to the lanes."""


def place_row(items: Sequence[Item], measure: Callable[[int], Measure], loops: Sequence[Edge]) -> Block:
    """Items side by side on one lane, with the loops that lie inside."""
    block = Block()
    for item in items:
        if isinstance(item, int):
            size = measure(item)
            block.spots[item] = Spot(block.width, block.width + size.box, 0.0)
            block.down = max(block.down, (size.wires - 1) * GAP + 10.0 + size.below)
            block.width += size.box + size.after
        else:
            _place_lanes(block, item, measure, loops)
    inside = [e for e in loops if e[0] in block.spots and e[1] in block.spots and e not in block.loops]
    for edge in sorted(inside, key=lambda e: block.spots[e[1]].left - block.spots[e[0]].right):
        left, right = block.spots[edge[0]].right, block.spots[edge[1]].right
        block.raise_loop(edge, left, right, TRACK)
    return block


def _place_lanes(block: Block, lanes: Lanes, measure: Callable[[int], Measure], loops: Sequence[Edge]) -> None:
    rows = [place_row(branch, measure, loops) for branch in lanes.branches]
    width = max(row.width for row in rows) + FORK
    y = bottom = 0.0
    for i, row in enumerate(rows):
        if i:
            y = bottom + LANE + row.up - 10.0
        else:
            block.sky.append((block.width, block.width + width, row.up))
            block.up = max(block.up, row.up)
        for station, spot in row.spots.items():
            shift = block.width + FORK
            block.spots[station] = Spot(spot.left + shift, spot.right + shift, spot.y + y)
        block.loops |= row.loops
        bottom = y + row.down
        block.down = max(block.down, bottom)
    block.width += width


@dataclass
class Score:
    """A laid-out diagram: one block per line, and the loops that run over line ends, with a height in each line."""

    lines: list[Block]
    spots: dict[int, Spot]
    loops: dict[Edge, list[float]]
    """Heights in the lines from that of the source to that of the target."""


def place(planned: Plan, measure: Callable[[int], Measure], width: float, keep: Sequence[range]) -> Score:
    """Break a plan into lines.

    Args:
        planned: what to place.
        measure: sizes of the stations.
        width: of a line, in user units.
        keep: stretches of stations that a line end should rather not cut.
    """
    loops = list(planned.loops)
    items = _within(planned, planned.items, loops, measure, width)
    units = _units(items)
    ends = _breaks(units, measure, loops, width, keep)
    lines: list[Block] = []
    spots: dict[int, Spot] = {}
    for i, (start, stop) in enumerate(pairwise([0, *ends])):
        row = [item for unit in units[start:stop] for item in unit]
        block = place_row(row, measure, loops)
        lines.append(block)
        spots |= {s: Spot(spot.left, spot.right, spot.y, i) for s, spot in block.spots.items()}
    found: dict[Edge, list[float]] = {}
    for edge in sorted(loops, key=lambda e: (spots[e[1]].line - spots[e[0]].line, spots[e[1]].left)):
        first, last = spots[edge[0]].line, spots[edge[1]].line
        for i in range(first, last + 1) if first != last else ():
            left = spots[edge[0]].right if i == first else -1e9
            right = spots[edge[1]].right if i == last else 1e9
            lines[i].raise_loop(edge, left, right, TRACK)
        found[edge] = [lines[i].loops[edge] for i in range(first, last + 1)]
    return Score(lines, spots, found)


def _within(planned: Plan, items: list[Item], loops: list[Edge], measure: Callable[[int], Measure],
            width: float) -> list[Item]:  # fmt: skip
    """Lanes that are wider than a line are drawn one after another in it, joined by loops."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, int) or place_row([item], measure, []).width < 0.75 * width:
            found.append(item)
            continue
        for i, branch in enumerate(item.branches):
            own = set(stations_of(branch))
            for u, w in planned.edges:
                enters, leaves = w in own and u not in own, u in own and w not in own
                if (enters and i) or (leaves and i < len(item.branches) - 1):
                    loops += [(u, w)] if u != START and w != END and (u, w) not in loops else []
            found += _within(planned, branch, loops, measure, width)
    return found


def _units(items: Sequence[Item]) -> list[list[Item]]:
    """Items that stay together in a line: lanes with the station in which they meet."""
    units: list[list[Item]] = []
    for i, item in enumerate(items):
        if i and isinstance(items[i - 1], Lanes):
            units[-1].append(item)
        else:
            units.append([item])
    return units


def _breaks(units: Sequence[Sequence[Item]], measure: Callable[[int], Measure], loops: Sequence[Edge], width: float,
            keep: Sequence[range]) -> list[int]:  # fmt: skip
    """Where lines end, as numbers of units: few lines, well filled, that cut few loops and stretches."""
    widths = [place_row(unit, measure, []).width for unit in units]
    members = [stations_of(unit) for unit in units]
    of_unit = {station: i for i, found in enumerate(members) for station in found}
    cut = [0.0] * (len(units) + 1)
    for u, w in loops:
        for i in range(of_unit[u] + 1, of_unit[w] + 1):
            cut[i] += 0.35
    for stretch in keep:
        inside = sorted({of_unit[s] for s in stretch if s in of_unit})
        for i in range(inside[0] + 1, inside[-1] + 1) if inside else ():
            cut[i] += 0.8
    for i, unit in enumerate(units):
        cut[i] += 0.2 if isinstance(unit[0], Lanes) else 0.0
    best = [0.0] + [float("inf")] * len(units)
    start = [0] * (len(units) + 1)
    for stop in range(1, len(units) + 1):
        used = 0.0
        for begin in range(stop - 1, -1, -1):
            used += widths[begin]
            if used > width and begin < stop - 1:
                break
            slack = 0.0 if stop == len(units) else max(0.0, 1 - used / width) ** 2
            cost = best[begin] + 1.5 + slack + (cut[stop] if stop < len(units) else 0.0)
            if cost < best[stop]:
                best[stop], start[stop] = cost, begin
    ends, stop = [], len(units)
    while stop:
        ends.append(stop)
        stop = start[stop]
    return ends[::-1]
