"""Diagram: a traced network drawn as a neural circuit diagram, one SVG without any outside reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pliant.core import Facts
from pliant.diagram.circuit import Circuit, Station
from pliant.diagram.fold import Folded, Repeat, fold
from pliant.diagram.layout import END, FORK, GAP, START, Edge, Measure, Score, Spot, place, plan
from pliant.diagram.text import call_text
from pliant.graph.graph import Graph
from pliant.graph.spans import common_path

FACTS = Facts(
    title="Neural Circuit Diagrams: Robust Diagrams for the Communication, Implementation, and Analysis of Deep "
    "Learning Architectures",
    year=2024,
    room="diagram",
    rows=("151",),
    needs=(),
    laws=(),
    deviations=(
        "Generated from the traced graph, not drawn by hand: what is shown is what runs, operator by operator.",
        "Operators are boxes with their names over the axes they act on; the paper gives many a symbol of their own.",
        "The batch is drawn as an axis like any other; the paper mostly leaves it out.",
        "Weights belong to the operator that reads them; only weights that enter as plain operands are named.",
        "A shortcut is one loop in the colour of its elastic axis, not a second bundle of wires.",
        "Repeated blocks are drawn once with a count, and long networks are broken into lines like a score.",
        "Elastic axes are coloured by group and carry the group's number, which the paper has no notion of.",
        "Normalisation over the batch is drawn as in evaluation, when it acts on the channel axis only.",
    ),
)

TONES = 8
"""Colours; later groups share them, told apart by their numbers."""
_LIGHT = ("#0b62c4", "#c4510b", "#1d8348", "#8a3fb0", "#97700a", "#c02468", "#007c87", "#6d4c41")
_DARK = ("#6db1ff", "#ffa25e", "#6fd598", "#cf9bff", "#e0be4d", "#ff86b4", "#4dcfe0", "#cfa996")

STYLE = (
    ".circuit,.wires{--soft:#5b6675;--paper:#fff;"
    + "".join(f"--wire{i}:{c};" for i, c in enumerate(_LIGHT))
    + "}.circuit{color:var(--ink,#1c2430);"
    + 'font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}'
    + "@media (prefers-color-scheme:dark){.circuit,.wires{--soft:#a3adba;--paper:#14181e;"
    + "".join(f"--wire{i}:{c};" for i, c in enumerate(_DARK))
    + "}.circuit{color:var(--ink,#e8ebf0)}}"
    + ".circuit path{fill:none}.circuit .w{stroke:currentColor;stroke-opacity:.42;stroke-width:1.3}"
    + ".circuit .one{stroke-dasharray:1 4}"
    + "".join(
        f".circuit .t{i}{{color:var(--wire{i})}}.circuit path.t{i}{{stroke:var(--wire{i})}}" for i in range(TONES)
    )
    + ".circuit path[class^=t]{stroke-width:2.4}.circuit path.thin{stroke-width:1.5}"
    + ".circuit .loop{stroke-linecap:round;stroke-linejoin:round}"
    + ".circuit path.loop.soft{stroke:var(--soft);stroke-width:1.5}"
    + ".circuit text{fill:currentColor;font-size:10.5px;stroke:none}.circuit .size{font-size:9.5px}"
    + ".circuit .soft{color:var(--soft)}.circuit text.soft{fill:var(--soft)}"
    + ".circuit .box{fill:var(--paper);stroke:currentColor;stroke-width:1.1}"
    + ".circuit .pill{fill:var(--paper);stroke:currentColor;stroke-width:1;stroke-dasharray:3 2}"
    + ".circuit .pill.join{stroke-dasharray:none}"
    + ".circuit .panel{fill:currentColor;fill-opacity:.045;stroke:currentColor;stroke-opacity:.25}"
    + ".circuit .count{font-size:12px;font-weight:600}.circuit .name{font-weight:600}"
    + ".circuit circle{stroke:none;fill:currentColor}"
    + ".circuit .mark:hover rect,.circuit .mark:focus rect{stroke-width:2}.circuit .mark:focus{outline:none}"
)

MOST_GROUPS = 60
"""In the legend; a network with more of them in sight has them in the table beside it."""

LETTER = 5.6
"""Width of a letter at the usual size."""
_HEADER = 21.0
_MARGIN = 84.0
_SPACE = 22.0


@dataclass(frozen=True)
class Diagram:
    """A drawn network.

    Args:
        svg: one `<svg>` element that follows the reader's light or dark scheme.
        tones: group -> which of the colours `--wire0` to `--wire7` it has; groups that a folded block stands for have
            that of the group that is drawn.
        stations: steps of the network, folded blocks counted in full.
        drawn: steps that are drawn.
    """

    svg: str
    tones: dict[int, int]
    stations: int
    drawn: int

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg


def diagram(graph: Graph, *, title: str = "network", width: float = 1040.0) -> Diagram:
    """A network as a neural circuit diagram, read like a score: from left to right, line after line.

    Every axis of a value is a wire, a box lies over the axes it acts on and an operator is broadcast over the wires
    that pass it by; a dashed pill acts on each element alone. Reshapes and permutations bend the wires. Branches are
    drawn in parallel, shortcuts as loops, repeated blocks once with their count. Elastic axes have the colour and
    number of their group. Pointing at a step shows the call, its shapes and where it is in the source.

    Abbott 2024, "Neural Circuit Diagrams" <https://arxiv.org/abs/2402.05424>; `FACTS` names the deviations.

    Args:
        graph: a traced network.
        title: read by screen readers.
        width: of a line in user units, at least 400.

    Raises:
        ValueError: a width that nothing fits into.
    """
    if width < 400:
        raise ValueError(f"width must be at least 400, got {width}")
    return _Drawing(graph, title, width).diagram()


class _Drawing:
    def __init__(self, graph: Graph, title: str, width: float) -> None:
        self.graph, self.title, self.width = graph, title, width
        self.circuit = Circuit(graph)
        self.folded: Folded = fold(self.circuit)
        self.stations = self.circuit.stations
        self.alike, self.tones = self._tones()
        self.readers: dict[int, list[int]] = {i: [] for i in self.folded.kept}
        edges: list[Edge] = []
        for i in self.folded.kept:
            sources = self.folded.sources(i)
            edges += [(u, i) for u in sources] or [(START, i)]
            for u in sources:
                self.readers[u].append(i)
        edges += [(i, END) for i in self.folded.kept if not self.readers[i]]
        planned = plan(self.folded.kept, edges)
        self.edges = [edge for edge in planned.edges if edge[0] != START and edge[1] != END]
        self._sources_of_loops = {u for u, _ in planned.loops}
        keep = [repeat.body for repeat in self.folded.repeats]
        self.score: Score = place(planned, self.measure, width - _MARGIN - 4, keep)
        self.spans = {s.merge: s.module for s in graph.spans}
        self.tops: list[float] = []
        self.height = self._stack()

    # -- groups and colours -----------------------------------------------------------------------------------------

    def _tones(self) -> tuple[dict[int, list[int]], dict[int, int]]:
        """Drawn group -> the groups it stands for; and every group's colour."""
        alike: dict[int, list[int]] = {}
        owner: dict[int, int] = {}
        for i in self.folded.kept:
            for j in self.folded.alike(i):
                for axis in range(len(self.circuit.shape(self.stations[i].value))):
                    pairs = zip(self._groups(i, axis), self._groups(j, axis), strict=False)
                    for drawn, other in pairs:
                        if other not in owner:
                            owner[other] = owner.get(drawn, drawn)
                            alike.setdefault(owner[other], []).append(other)
        order = {group: n % TONES for n, group in enumerate(alike)}
        return alike, {group: order[drawn] for group, drawn in owner.items()}

    def _groups(self, index: int, axis: int) -> tuple[int, ...]:
        return tuple(g for g in self.circuit.groups(self.stations[index].value, axis) if g >= 0)

    # -- sizes ------------------------------------------------------------------------------------------------------

    def measure(self, index: int) -> Measure:
        """The size of a station."""
        station = self.stations[index]
        wires = len(self.circuit.shape(station.value))
        labels = [text for _, text in self.axis_labels(index)]
        after = max([len(text) * 5.9 + 8 for text in labels], default=7.0)
        if index in self._sources_of_loops:
            after += 9.0
        box = self._box_width(station)
        if station.constants:
            after = max(after, 5.2 * len(_constant(station)) + 4.0 - box)
        return Measure(box, after, wires, 15.0 if station.constants else 0.0)

    def _box_width(self, station: Station) -> float:
        if station.look == "port":
            return 74.0 if not station.sources else 16.0 + LETTER * min(20, len(station.label[0]))
        if station.look == "pill":
            return 17.0 if self._upright(station) else 14.0 + LETTER * len(station.label[0])
        if station.look == "bend":
            return 34.0
        if station.look == "part":
            return 30.0
        return 12.0 + LETTER * max(len(line) for line in self._lines(station))

    def _upright(self, station: Station) -> bool:
        """Whether the text of a pill fits when it is turned, or is short enough anyway."""
        return len(station.label[0]) <= 2 or 6.2 * len(station.label[0]) < (self._rows(station) - 1) * GAP + 14.0

    def _rows(self, station: Station) -> int:
        """How many wires a box lies over, in its own lane."""
        rows = station.enters | station.leaves
        return max(rows) - min(rows) + 1 if rows else 1

    def _lines(self, station: Station) -> list[str]:
        """The label, broken so that it fits the height of the box."""
        room = self._rows(station) if len(station.sources) < 2 else 3
        words = list(station.label)
        while len(words) > max(1, room):
            shortest = min(range(len(words) - 1), key=lambda i: len(words[i]) + len(words[i + 1]))
            words[shortest : shortest + 2] = [f"{words[shortest]} {words[shortest + 1]}"]
        if len(words) == 1 and room > 1 and " " in words[0]:
            words = words[0].split(" ", 1)
        return words

    def axis_labels(self, index: int) -> Iterator[tuple[int, str]]:
        """What is written on the wires behind a station: sizes and names that are new there."""
        station = self.stations[index]
        if station.look == "port" or not station.sources:
            return
        source = self.folded.sources(index)[0]
        names = self.circuit.names
        origin: dict[int, int] = {}
        for a, b in station.passes:
            several = sum(1 for a2, b2 in station.passes if b2 == b or a2 == a) > 1
            if not several:
                origin[b] = a
        acted_in, acted_out = sorted(station.enters), sorted(station.leaves)
        if station.look == "box" and len(acted_in) == len(acted_out):
            origin |= dict(zip(acted_out, acted_in, strict=True))
        for axis in range(len(self.circuit.shape(station.value))):
            came = origin.get(axis, len(names[source]))
            new_name = came >= len(names[source]) or names[source][came] != names[index][axis]
            if new_name or self._drawn_as(source, came) != self._drawn_as(index, axis):
                yield axis, self._axis_text(index, axis, with_name=new_name)

    def _drawn_as(self, index: int, axis: int) -> tuple[str, tuple[int, ...]]:
        """Size and groups of an axis."""
        return self.circuit.size(self.stations[index].value, axis), self._groups(index, axis)

    def _axis_text(self, index: int, axis: int, *, with_name: bool) -> str:
        groups = self._groups(index, axis)
        marks = "+".join(f"g{g}" for g in groups[:2]) + ("+…" if len(groups) > 2 else "")
        size = self.circuit.size(self.stations[index].value, axis)
        name = self.circuit.names[index][axis] if with_name else ""
        return " ".join(part for part in (name, size, marks) if part)

    # -- vertical places --------------------------------------------------------------------------------------------

    def _stack(self) -> float:
        y = 4.0
        for i, block in enumerate(self.score.lines):
            depth = self._panels_in(i)
            y += block.up + 12.0 + _HEADER * depth
            self.tops.append(y)
            y += block.down + _SPACE
        return y

    def _panels_in(self, line: int) -> int:
        """How many panels lie inside one another in a line."""
        inside = [r for r in self.folded.repeats if any(self._on(s, line) for s in r.body)]
        return max([sum(1 for other in inside if r.start in other.body) for r in inside], default=0)

    def _on(self, station: int, line: int) -> bool:
        return station in self.score.spots and self.score.spots[station].line == line

    def _shift(self, line: int) -> float:
        return 6.0 if line == 0 else _MARGIN

    def spot(self, index: int) -> Spot:
        """Where a station stands in the picture."""
        found = self.score.spots[index]
        x, y = self._shift(found.line), self.tops[found.line]
        return Spot(found.left + x, found.right + x, found.y + y, found.line)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def diagram(self) -> Diagram:
        """The whole picture."""
        loops = set(self.score.loops)
        parts = [self._panel(repeat) for repeat in self.folded.repeats]
        wires = [piece for edge in self.edges if edge not in loops for piece in self._bundle(edge)]
        parts += dict.fromkeys(wires)  # branches share the way to where they part
        parts += [self._loop(edge, heights) for edge, heights in self.score.loops.items()]
        parts += [self._station(i) for i in self.folded.kept]
        legend, bottom = self._legend(self.height + 10.0)
        told = f"{len(self.stations)} steps, {len(self.folded.kept)} of them drawn, {len(self.score.lines)} lines"
        text = (f"Each wire is an axis, each box acts on the wires it covers. {told}; "
                f"{len(self.folded.repeats)} repeated blocks are drawn once.")  # fmt: skip
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" viewBox="0 0 {self.width:g} {bottom:.0f}" '
            f'width="100%" role="img" aria-labelledby="circuit-title circuit-text">'
            f'<title id="circuit-title">Circuit diagram of {escape(self.title)}</title>'
            f'<desc id="circuit-text">{escape(text)}</desc>'
            f"<style>{STYLE}</style>{''.join(parts)}{legend}</svg>"
        )
        return Diagram(svg, self.tones, len(self.stations), len(self.folded.kept))

    def _wire(self, index: int, axis: int, path: str) -> str:
        """An axis: coloured by group, in strands where several groups share it, dotted where its size is 1."""
        groups = self._groups(index, axis)
        size = self.circuit.size(self.stations[index].value, axis)
        if not groups:
            return f'<path class="w{" one" if size == "1" else ""}" d="{path}"/>'
        if len(groups) == 1:
            return f'<path class="t{self.tones[groups[0]]}" d="{path}"/>'
        strands = groups[:4]
        return "".join(
            f'<path class="t{self.tones[g]} thin" d="{path}" '
            f'transform="translate(0 {2.2 * (i - (len(strands) - 1) / 2):.1f})"/>'
            for i, g in enumerate(strands)
        )

    def _bundle(self, edge: Edge) -> Iterator[str]:
        """The wires from one station to the next; where they end in another line, labelled anew at its start."""
        u, w = edge
        a, b = self.spot(u), self.spot(w)
        lane = self.score.spots[w].y if b.line != a.line else max(0.0, b.y - a.y)
        lead = min(b.left, a.right + self.measure(u).after) if b.line == a.line and lane else b.left
        for n in range(len(self.circuit.shape(self.stations[u].value))):
            y = a.y + n * GAP
            if b.line == a.line:
                yield self._wire(u, n, f"M{a.right:.1f} {y:.1f}H{lead:.1f}")
                yield self._wire(u, n, _curve(lead, y, b.left, y + lane)) if lane else ""
                continue
            yield self._wire(u, n, f"M{a.right:.1f} {y:.1f}H{self.width - 4:g}")
            y = self.tops[b.line] + n * GAP
            yield self._wire(u, n, _curve(_MARGIN - 8, y, b.left, y + lane))
            text = f"{self.circuit.names[u][n]} {self.circuit.size(self.stations[u].value, n)}"
            yield (f'<text class="size soft" x="{_MARGIN - 12:g}" y="{y + 3.3:.1f}" text-anchor="end">'
                   f"{escape(_short(text.strip(), 15))}</text>")  # fmt: skip

    def _loop(self, edge: Edge, heights: Sequence[float]) -> str:
        u, w = edge
        a, b = self.spot(u), self.spot(w)
        start = a.right + self.measure(u).after - 7.0
        axes = len(self.circuit.shape(self.stations[u].value))
        others = [e for e in self.score.loops if e[1] == w]
        end = (b.left + b.right) / 2 + 5.0 * (others.index(edge) - (len(others) - 1) / 2)
        box_top = self._extent(w)[0]
        tone = next((f"t{self.tones[g]}" for n in reversed(range(axes)) for g in self._groups(u, n)[:1]), "soft")
        path = []
        for i, height in enumerate(heights):
            line = a.line + i
            y = self.tops[line] - height
            left = start if i == 0 else _MARGIN - 8
            right = end if i == len(heights) - 1 else self.width - 4
            path.append(f"M{left:.1f} {a.y:.1f}V{y + 6:.1f}Q{left:.1f} {y:.1f} {left + 6:.1f} {y:.1f}" if i == 0
                        else f"M{left:.1f} {y:.1f}")  # fmt: skip
            path.append(f"H{right - 6:.1f}Q{right:.1f} {y:.1f} {right:.1f} {y + 6:.1f}V{box_top:.1f}"
                        if i == len(heights) - 1 else f"H{right:.1f}")  # fmt: skip
        dots = "".join(f'<circle cx="{start:.1f}" cy="{a.y + n * GAP:.1f}" r="2.1"/>' for n in range(axes))
        stem = f'<path class="loop {tone}" style="stroke-width:1.2" d="M{start:.1f} {a.y:.1f}v{(axes - 1) * GAP:.1f}"/>'
        name = self.spans.get(self.stations[w].name)
        label = self._loop_label(name, start, end if b.line == a.line else self.width, self.tops[a.line] - heights[0])
        told = f"{name}: may be left out" if name is not None else "shortcut"
        return (f'<g class="{tone} mark" tabindex="0"><title>{escape(told)}</title>{stem}{dots}'
                f'<path class="loop {tone}" d="{"".join(path)}"/></g>{label}')  # fmt: skip

    def _loop_label(self, name: str | None, left: float, right: float, y: float) -> str:
        if not name or right - left < 5.2 * len(name) + 24:
            return ""
        return f'<text class="size soft" x="{left + 9:.1f}" y="{y - 3.5:.1f}">{escape(name)}</text>'

    def _arrivals(self, index: int) -> list[tuple[float, int]]:
        """Where bundles reach a station: the first wire's place and their number."""
        here = self.spot(index)
        found = []
        for u in self.folded.sources(index):
            if (u, index) not in self.score.loops:
                there = self.spot(u)
                y = max(there.y, here.y) if there.line == here.line else here.y
                found.append((y, len(self.circuit.shape(self.stations[u].value))))
        return found

    def _extent(self, index: int) -> tuple[float, float]:
        """Top and bottom of a box."""
        station, y = self.stations[index], self.spot(index).y
        rows = [y + n * GAP for n in station.enters | station.leaves]
        for top, count in self._arrivals(index):
            if top > y:
                rows += [top, top + (count - 1) * GAP]
        rows = rows or [y + n * GAP for n in range(max(1, len(self.circuit.shape(station.value))))]
        return min(rows) - 8.0, max(rows) + 8.0

    def _station(self, index: int) -> str:
        station, spot = self.stations[index], self.spot(index)
        over, body = self._through(index)
        top, bottom = self._extent(index)
        middle = (spot.left + spot.right) / 2
        size = f'x="{spot.left:.1f}" y="{top:.1f}" width="{spot.right - spot.left:.1f}" height="{bottom - top:.1f}"'
        if station.look == "box":
            body += f'<rect class="box" {size} rx="4"/>{over}{self._lettering(station, middle, (top + bottom) / 2)}'
        elif station.look == "pill":
            body += over + self._pill(station, size, middle, (top + bottom) / 2)
        elif station.look == "part":
            body += f'<text class="size soft" x="{spot.left + 2:.1f}" y="{spot.y - 5:.1f}">{station.label[0]}</text>'
        elif station.look == "port":
            body = self._port(index)
        if station.look in ("part", "bend"):
            body = over + body
        for axis, text in self.axis_labels(index):
            groups = self._groups(index, axis)
            y = spot.y + axis * GAP - 2.5 - 1.1 * max(1, min(4, len(groups)))
            kind = f' class="size t{self.tones[groups[0]]}"' if groups else ' class="size soft"'
            body += f'<text{kind} x="{spot.right + 4:.1f}" y="{y:.1f}">{escape(text)}</text>'
        if station.constants:
            name = _constant(station)
            low = max(bottom + 3.0, spot.y + (len(self.circuit.shape(station.value)) - 1) * GAP + 11.0)
            body += (f'<path class="w" d="M{middle:.1f} {bottom:.1f}V{low:.1f}"/><text class="size soft" '
                     f'x="{middle:.1f}" y="{low + 10:.1f}" text-anchor="middle">{escape(name)}</text>')  # fmt: skip
        return f'<g class="mark" tabindex="0"><title>{escape(self._told(index))}</title>{body}</g>'

    def _through(self, index: int) -> tuple[str, str]:
        """The wires that pass a station by: level ones lie over its box, bent ones under it."""
        station, spot = self.stations[index], self.spot(index)
        wired = any(y == spot.y for y, _ in self._arrivals(index))
        if not wired or station.look == "port":
            return "", ""
        source = self.folded.sources(index)[0]
        over = under = ""
        for a, b in sorted(station.passes):
            path = _curve(spot.left, spot.y + a * GAP, spot.right, spot.y + b * GAP)
            single = sum(1 for pair in station.passes if pair[1] == b) == 1
            wire = self._wire(index, b, path) if single else self._wire(source, a, path)
            over, under = (over + wire, under) if a == b else (over, under + wire)
        return over, under

    def _lettering(self, station: Station, x: float, y: float) -> str:
        lines = self._lines(station)
        first = y + 3.7 - 6.3 * (len(lines) - 1)
        return "".join(
            f'<text x="{x:.1f}" y="{first + 12.6 * n:.1f}" text-anchor="middle">{escape(line)}</text>'
            for n, line in enumerate(lines)
        )

    def _pill(self, station: Station, size: str, x: float, y: float) -> str:
        text = station.label[0]
        kind = "pill join" if len(station.sources) > 1 or station.constants else "pill"
        turned = len(text) > 2 and self._upright(station)
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        return (f'<rect class="{kind}" {size} rx="9"/><text x="{x:.1f}" y="{y + 3.6:.1f}" text-anchor="middle"{turn}>'
                f"{escape(text)}</text>")  # fmt: skip

    def _port(self, index: int) -> str:
        station, spot = self.stations[index], self.spot(index)
        name = escape(_short(station.label[0], 20))
        wires = range(len(self.circuit.shape(station.value)))
        if station.sources:
            source = self.folded.sources(index)[0]
            ends = "".join(self._wire(source, n, f"M{spot.left:.1f} {spot.y + n * GAP:.1f}h8") for n in wires)
            text = (
                f'<text class="name" x="{spot.left + 13:.1f}" y="{spot.y + len(wires) * GAP / 2 - 5:.1f}">{name}</text>'
            )
            return ends + text
        text = f'<text class="name" x="{spot.left:.1f}" y="{spot.y - 13:.1f}">{name}</text>'
        for n in wires:
            label = escape(self._axis_text(index, n, with_name=True))
            y = spot.y + n * GAP
            text += (
                f'<text class="size soft" x="{spot.right - 6:.1f}" y="{y + 3.3:.1f}" text-anchor="end">{label}</text>'
            )
        return text

    def _told(self, index: int) -> str:
        """The text shown on pointing at a station."""
        station = self.stations[index]
        what = station.look if station.look == "port" else ""
        lines = [" ".join(p for p in (" ".join(station.label) or "rearrange", what, f"in {station.module}"
                                      if station.module else "") if p)]  # fmt: skip
        lines += [call_text(n, lambda name: name) for n in station.nodes if n.kind == "call" and what != "port"]
        value = station.value
        axes = [f"{name} {self.circuit.size(value, a)}" for a, name in enumerate(self.circuit.names[index])]
        lines.append("gives " + ", ".join(axes))
        found = {g for a in range(len(axes)) for g in self._groups(index, a)}
        lines += [f"g{g}: {self.graph.groups[g].name}, {self.graph.groups[g].units} units" for g in sorted(found)]
        many = len(self.folded.alike(index))
        if many > 1:
            lines.append(f"{many} alike")
        if station.nodes[-1].line and what != "port":
            lines.append(station.nodes[-1].line)
        return "\n".join(lines)

    def _panel(self, repeat: Repeat) -> str:
        parts = []
        outer = sum(1 for other in self.folded.repeats if other != repeat and repeat.start in other.body
                    and other.length > repeat.length)  # fmt: skip
        drawn = [s for s in repeat.body if s in self.score.spots]
        for line in sorted({self.score.spots[s].line for s in drawn}):
            spots = [(s, self.spot(s)) for s in drawn if self.score.spots[s].line == line]
            left = min(spot.left for _, spot in spots) - 5
            right = max(spot.right + self.measure(s).after for s, spot in spots) - 2
            block, y = self.score.lines[line], self.tops[line]
            top = y - block.up - 10.0 - _HEADER * (self._panels_in(line) - outer) + 4.0 * outer
            bottom = y + block.down + 4.0 - 3.0 * outer
            parts.append(f'<rect class="panel" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                         f'height="{bottom - top:.1f}" rx="7"/>')  # fmt: skip
            if line == self.score.spots[drawn[0]].line:
                name = self._panel_name(repeat)
                room = int((right - left - 40) / 5.2)
                text = f'<tspan class="size soft" dx="7">{escape(_short(name, room))}</tspan>' if room > 8 else ""
                many = f'<tspan class="count">× {repeat.count}</tspan>'
                parts.append(f'<text x="{left + 8:.1f}" y="{top + 14:.1f}">{many}{text}</text>')
        return "".join(parts)

    def _panel_name(self, repeat: Repeat) -> str:
        """The modules of the first and the last stretch."""

        def of(start: int) -> str:
            return common_path([self.stations[i].module for i in range(start, start + repeat.length)])

        first, last = of(repeat.start), of(repeat.all.stop - repeat.length)
        return first if first == last else f"{first} … {last}"

    def _legend(self, y: float) -> tuple[str, float]:
        """The groups that are drawn, with their colours and what they are called."""
        parts, columns = [], 3
        wide = (self.width - 12) / columns
        for n, (group, others) in enumerate(list(self.alike.items())[:MOST_GROUPS]):
            left, top = 6 + wide * (n % columns), y + 16 * (n // columns)
            more = f" and {len(others) - 1} alike" if len(others) > 1 else ""
            text = f"{self.graph.groups[group].units} units{more}"
            name = _short(self.graph.groups[group].name, int((wide - 60) / 5.4) - len(text))
            parts.append(f'<path class="t{n % TONES}" d="M{left:.1f} {top:.1f}h16"/><text class="size" '
                         f'x="{left + 22:.1f}" y="{top + 3.4:.1f}"><tspan class="name">g{group}</tspan> {escape(name)} '
                         f'<tspan class="soft">{escape(text)}</tspan></text>')  # fmt: skip
        rows = -(-min(len(self.alike), MOST_GROUPS) // columns)
        left = len(self.alike) - MOST_GROUPS
        if left > 0:
            parts.append(f'<text class="size soft" x="6" y="{y + 16 * rows + 3:.1f}">and {left} more groups</text>')
            rows += 1
        return "".join(parts), y + 16 * rows + 4


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    """From one place to another: level, or over in an S."""
    if abs(y1 - y2) < 0.01:
        return f"M{x1:.1f} {y1:.1f}H{x2:.1f}"
    stop = min(x2, x1 + 2 * FORK)
    middle = (x1 + stop) / 2
    rest = f"H{x2:.1f}" if stop < x2 else ""
    return f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {stop:.1f} {y2:.1f}{rest}"


def _constant(station: Station) -> str:
    """The name of the weight that a station reads as an operand."""
    return _short(station.constants[0].removesuffix(".weight").rpartition(".")[2], 16)


def _short(text: str, room: int) -> str:
    """A text that fits, cut in front where it is a path."""
    return text if len(text) <= room else "…" + text[len(text) - max(1, room - 1) :]
