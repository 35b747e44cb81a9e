"""A compiled network that decides, as a picture: its states, the ways between them, and where rows and time go."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pliant.core import PliantError, write_atomic
from pliant.report.chart import percent
from pliant.report.page import document, section, table
from pliant.report.program_layout import HIGH, LAYER, MARGIN, WIDE, Line, Spot, outlets_of, placed, targets_of
from pliant_runtime import ArtifactError, Family, load

_LANE = 16
"""Between two lines that go back, in user units."""
_STYLE = """
main{max-width:1120px}
.program{display:block;margin:8px 0;font-family:system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
.program .box{fill:color-mix(in srgb,var(--tone2) var(--heat),var(--panel));stroke:var(--rule);stroke-width:1.5}
.program .box.end{stroke:var(--tone3);stroke-width:2}.program .box.never{stroke-dasharray:5 4}
.program .box:hover,.program .box:focus{stroke:var(--ink);outline:none}
.program text{fill:var(--ink);font-size:12px;pointer-events:none}.program text.small{font-size:11px;opacity:.8}
.program text.side{fill:var(--soft);font-size:11px;paint-order:stroke;
stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.program .edge{fill:none;stroke:var(--tone0);stroke-linecap:round}
.program .edge.forced{stroke:var(--tone1);stroke-dasharray:6 4}
.program .edge.open{stroke:var(--tone2);stroke-dasharray:2 5}
.program .head{fill:var(--tone0)}.program .head.forced{fill:var(--tone1)}.program .head.open{fill:var(--tone2)}
.drawing{overflow-x:auto}
"""
_READING = (
    "Every box is a state: a piece of the network that is one onnxruntime call, up to the next decision. A row starts "
    "in the topmost one and leaves through boxes with a green rim. The thicker a line, the more rows took it; dashed "
    "grey lines were taken by no row, but checked by forcing the decision; dotted orange ones were not checked. The "
    "redder a box, the more of the time is spent in it. Point at a box for its figures."
)


@dataclass(frozen=True)
class Traffic:
    """How rows went through a program.

    Args:
        rows: how many.
        edges: (state, side) to how often it was taken.
        checked: edges that were compared with the network, taken or forced.
        micros: per state the time of one visit, in microseconds; empty where it was not measured.
        source: where the rows come from, in words.
    """

    rows: int
    edges: Mapping[tuple[int, int], int]
    checked: frozenset[tuple[int, int]]
    micros: tuple[float, ...]
    source: str

    def visits(self, family: Family) -> list[int]:
        """How often each state was visited."""
        found = [0] * len(family.program.states)
        found[family.entries[0].start_state] = self.rows
        for (number, side), times in self.edges.items():
            found[targets_of(family, number)[side]] += times
        return found


def write_program_page(
    artifact: str | Path, *, inputs: Iterable[Any] | None = None, out: str | Path | None = None
) -> Path:
    """Writes a page with the picture of a compiled network that decides.

    Args:
        artifact: its folder.
        inputs: rows to send through it, each as the network takes it; by default those of the compiler's own proof.
        out: the file; by default beside the folder, with the same name and `.html`.

    Returns:
        The path of the page.

    Raises:
        PliantError: the artifact is damaged, does not decide, or has no record of its proof and no inputs are given.
    """
    folder = Path(artifact)
    path = folder.with_name(f"{folder.name}.html") if out is None else Path(out)
    write_atomic(path, program_page(folder, inputs=inputs))
    return path


def program_page(artifact: Path, *, inputs: Iterable[Any] | None = None) -> str:
    """The page as one self-contained document; arguments and errors as of `write_program_page`."""
    try:
        family = load(artifact)
    except ArtifactError as error:
        raise PliantError(error.problem, where=str(artifact / error.file), fix="compile it anew") from error
    if any(state.step is None for state in family.program.states):
        fix = "give a network that decides, or the run folder of a search"
        raise PliantError("the artifact does not decide, so there is no program to draw", where=str(artifact), fix=fix)
    traffic = _recorded(artifact, family) if inputs is None else measured(family, inputs)
    facts = family.program.conditions.items()
    conditions = [[escape(name), escape(value if isinstance(value, str) else f"{value:g}")] for name, value in facts]
    body = [
        f"<h1>{escape(family.name)}</h1>",
        f'<p class="soft">A network whose way depends on its input: {escape(traffic.source)}.</p>',
        _figures(family, traffic),
        section("Program", _READING, f'<div class="drawing">{picture(family, traffic)}</div>'),
        section("States", "In the order in which they are found.", _states(family, traffic)),
        section("Conditions", "What was checked, and where.", table(["", ""], conditions, texts=2)),
    ]
    return document(f"{family.name} · pliant program", body, style=_STYLE)


def measured(family: Family, inputs: Iterable[Any]) -> Traffic:
    """Traffic of rows sent through an artifact now."""
    edges: Counter[tuple[int, int]] = Counter()
    rows = 0
    for each in inputs:
        edges.update(family.trace(each)[1])
        rows += 1
    if not rows:
        raise ValueError("there are no rows")
    return Traffic(rows, edges, frozenset(edges), (), f"{rows} rows sent through it")


def _recorded(artifact: Path, family: Family) -> Traffic:
    """The traffic that the compiler noted."""
    try:
        proof = json.loads((artifact / "card.json").read_text())["program"]
        edges = {(int(n), int(side)): int(taken) for n, side, taken, _ in proof["edges"]}
        checked = frozenset((int(n), int(side)) for n, side, _, done in proof["edges"] if done)
        micros = tuple(float(value) for value in proof["micros"])
        rows = int(proof["rows"])
        for number, side in edges:
            targets_of(family, number)[side]
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        fix = "compile it anew, or give inputs"
        raise PliantError(
            "no record of how rows went through it", where=str(artifact / "card.json"), fix=fix
        ) from error
    return Traffic(rows, edges, checked, micros, f"{rows} rows of the compiler's proof went through it")


def _shares(family: Family, traffic: Traffic) -> list[float]:
    """Per state its share of the time; empty where that was not measured."""
    if len(traffic.micros) != len(family.program.states):
        return []
    spent = [times * micros for times, micros in zip(traffic.visits(family), traffic.micros, strict=True)]
    total = sum(spent)
    return [each / total for each in spent] if total else []


def _figures(family: Family, traffic: Traffic) -> str:
    count = sum(len(targets_of(family, number)) for number in range(len(family.program.states)))
    taken = sum(1 for times in traffic.edges.values() if times)
    visits = sum(traffic.visits(family)) / max(traffic.rows, 1)
    cells = [
        (str(len(family.program.states)), "states"),
        (f"{visits:.1f}", "visited by a row on average"),
        (f"{taken} of {count}", f"ways taken by {traffic.rows} rows"),
        (f"{len(traffic.checked)} of {count}", "ways compared with the network"),
    ]
    body = "".join(f'<div class="figure"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cells)
    return f'<div class="figures">{body}</div>'


def _states(family: Family, traffic: Traffic) -> str:
    visits, shares = traffic.visits(family), _shares(family, traffic)
    rows = []
    for number, state in enumerate(family.program.states):
        assert state.step is not None  # all states of such a program decide
        row = [str(number), f"<code>{escape(state.step.at)}</code>", escape(_what(state.step))]
        row += [f"{visits[number] / max(traffic.rows, 1):.2f}"]
        row += [f"{traffic.micros[number]:.0f}", percent(shares[number])] if shares else []
        rows.append([*row, "yes" if state.step.rows.graph else escape(state.step.rows.why)])
    timed = ["µs a visit", "of the time"] if shares else []
    return table(["state", "begins at", "ends with", "visits a row", *timed, "many rows at once"], rows, texts=3)


def _what(step: Any) -> str:
    if step.next.kind == "raise":
        return f"raises {step.next.error[0]}"
    return {"if": "a decision", "switch": f"a choice of {len(step.next.edges)}", "return": "the result"}[step.next.kind]


# -- drawing -----------------------------------------------------------------------------------------------------------


def picture(family: Family, traffic: Traffic) -> str:
    """The program as one `<svg>` element."""
    spots, lines = placed(family)
    backs = [line for line in lines if line.back]
    right = max(spot.x + spot.wide / 2 for line in lines for spot in line.spots) if lines else spots[0].x + WIDE / 2
    width, height = right + MARGIN + _LANE * len(backs), _top(max(spots, key=_top)) + HIGH + 16
    drawn, labels = [], []
    outlets = outlets_of(lines)
    for line in lines:
        lane = right + _LANE * (backs.index(line) + 1) if line.back else None
        path, label = _line(line, lane, outlets[line.source, line.side], family, traffic)
        drawn.append(path)
        labels.append(label)
    drawn += labels  # over all lines
    shares, visits = _shares(family, traffic), traffic.visits(family)
    drawn += [_box(spot, family, traffic, shares, visits) for spot in spots]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="program" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="states and decisions of {escape(family.name)}">'
        f"{''.join(drawn)}</svg>"
    )


def _top(spot: Spot) -> float:
    return 8 + spot.layer * LAYER


def _line(line: Line, lane: float | None, at: float, family: Family, traffic: Traffic) -> tuple[str, str]:
    """A line with its head, and its label."""
    times = traffic.edges.get((line.source, line.side), 0)
    kind = "" if times else " forced" if (line.source, line.side) in traffic.checked else " open"
    thick = 1.5 + 6.5 * min(1.0, times / max(traffic.rows, 1))
    source, target = line.spots[0], line.spots[-1]
    step = family.program.states[line.source].step
    assert step is not None  # as all states here
    if lane is not None:
        y, z = _top(source) + HIGH - 12 + 5 * line.side, _top(target) + 12
        x = source.x + WIDE / 2
        path = f"M{x:.1f} {y:.1f}C{lane:.1f} {y:.1f} {lane:.1f} {y:.1f} {lane:.1f} {(y + z) / 2:.1f}"
        path += f"S{lane:.1f} {z:.1f} {target.x + WIDE / 2 + 7:.1f} {z:.1f}"
        tip = f"M{target.x + WIDE / 2:.1f} {z:.1f}l9 -5v10z"
        label = (lane - 6, (y + z) / 2 + 14 * line.side)
    else:
        x, y = at, _top(source) + HIGH
        path = f"M{x:.1f} {y:.1f}"
        label = (x, y + 16)
        for spot in line.spots[1:]:
            last = spot is target
            z = _top(spot) - (7 if last else 0)
            path += f"C{x:.1f} {y + 46:.1f} {spot.x:.1f} {z - 40:.1f} {spot.x:.1f} {z:.1f}"
            x, y = spot.x, z
            if not last:
                y = z + HIGH
                path += f"V{y:.1f}"
        tip = f"M{target.x:.1f} {_top(target):.1f}l-5 -9h10z"
    return (
        f'<path class="edge{kind}" style="stroke-width:{thick:.1f}" d="{path}"/><path class="head{kind}" d="{tip}"/>',
        f'<text class="side" x="{label[0]:.1f}" y="{label[1]:.1f}" text-anchor="middle">'
        f"{_named(line, step, times / max(traffic.rows, 1))}</text>",
    )


def _named(line: Line, step: Any, times: float) -> str:
    name = f"#{step.next.keys[line.side]}" if step.next.kind == "switch" else ("no", "yes")[line.side]
    return f"{name} {_often(times)}" if times else name


def _often(times: float) -> str:
    """Times a row: as a share up to 100 %, beyond as a factor."""
    return f"{times:.1f}×" if times > 1 else f"{100 * times:.0f} %"


def _box(spot: Spot, family: Family, traffic: Traffic, shares: Sequence[float], visits: Sequence[int]) -> str:
    assert spot.state is not None  # threads are not drawn
    step = family.program.states[spot.state].step
    assert step is not None  # as all states here
    times = visits[spot.state] / max(traffic.rows, 1)
    lines = [f"state {spot.state}, {step.at}", f"ends with {_what(step)}", f"{times:.2f} visits a row"]
    lines += (
        [f"{traffic.micros[spot.state]:.0f} µs a visit, {percent(shares[spot.state])} of the time"] if shares else []
    )
    share = shares[spot.state] if shares else 0.0
    kind = (" end" if step.next.kind in ("return", "raise") else "") + ("" if visits[spot.state] else " never")
    place = f"{spot.state}: " + (step.at if len(step.at) <= 24 else f"…{step.at[-23:]}")
    below = f"{times:.1f} visits a row" if times > 1 else f"{100 * times:.0f} % of rows"
    below += f" · {100 * share:.0f} % of time" if shares else ""
    x, y = spot.x - WIDE / 2, _top(spot)
    return (
        f'<g><rect class="box mark{kind}" style="--heat:{min(70.0, 140 * share):.0f}%" x="{x:.1f}" y="{y:.1f}" '
        f'width="{WIDE}" height="{HIGH}" rx="8" tabindex="0"><title>{escape(chr(10).join(lines))}</title></rect>'
        f'<text x="{spot.x:.1f}" y="{y + 19:.1f}" text-anchor="middle">{escape(place)}</text>'
        f'<text class="small" x="{spot.x:.1f}" y="{y + 35:.1f}" text-anchor="middle">{below}</text></g>'
    )
