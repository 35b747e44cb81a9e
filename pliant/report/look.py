"""What bends in a network and what stays rigid, as one self-contained HTML page with its circuit diagram."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from pliant.core import write_atomic
from pliant.diagram.diagram import STYLE, Diagram, diagram
from pliant.elastic import Elastic
from pliant.elastic.report import GroupRow, Report
from pliant.report.chart import number, percent
from pliant.report.page import document, section, table

_STYLE = """
main{max-width:1120px}
.drawing .circuit{display:block;height:auto;margin:12px 0 4px;min-width:760px}.drawing{overflow-x:auto}
.chip{display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle;margin-right:8px;
background:var(--rule)}
td.where{white-space:normal;min-width:15em;text-align:left}td.where details{margin:0}
td.where summary,td.where code{font-size:13px}
.meter{height:8px;border-radius:4px;background:var(--rule);overflow:hidden;margin:4px 0 14px;max-width:72ch}
.meter i{display:block;height:100%;background:var(--tone0)}
"""

_READING = (
    "Read it from left to right, line after line. Every <b>wire</b> is an axis; a <b>box</b> lies over the axes it "
    "acts on and is broadcast over the wires that pass it by; a <b>dashed pill</b> acts on every element alone. Wires "
    "that cross or meet are reshaped. <b>Loops</b> are shortcuts, named where what they jump over may be left out. "
    "Repeated blocks are drawn once. Coloured wires bend; the number is that of the group below. Point at a step for "
    "its call, shapes and source line."
)


def look_page(family: Elastic) -> str:
    """The page of a network: what bends, what is rigid and why, what it costs, and its diagram.

    Args:
        family: what `pliant.elastic` made of it.

    Returns:
        A whole HTML document that names no other file and no address, and works without scripts too.
    """
    report, drawn = family.report(), diagram(family.graph, title=family.name)
    numbers = {group.name: i for i, group in enumerate(family.graph.groups)}
    body = [
        f"<h1>{escape(report.network)}</h1>",
        f'<p class="soft">{escape(report.headline())}.</p>',
        _figures(report),
        section("Circuit", _READING, f'<div class="drawing">{drawn}</div>', _drawn(drawn)),
        _groups(report, drawn, numbers),
        _depth(report),
        _coverage(report),
        _rigid(report),
        _notes(report),
        _cost(report),
    ]
    return document(f"{report.network} · pliant look", body, style=STYLE + _STYLE)


def write_look(family: Elastic, path: str | Path) -> Path:
    """Writes `look_page` to a file, whole or not at all.

    Returns:
        The path.

    Raises:
        PliantError: the file cannot be written.
    """
    path = Path(path)
    write_atomic(path, look_page(family))
    return path


def _figures(report: Report) -> str:
    cells = [
        (_many(report.subnetworks), "sub-networks in one"),
        (percent(report.coverage), "of the parameters bend"),
        (_range(report.smallest.parameters, report.whole.parameters), "parameters, smallest to whole"),
        (_range(report.smallest.flops, report.whole.flops), "FLOPs for one sample"),
    ]
    body = "".join(f'<div class="figure"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cells)
    return f'<div class="figures">{body}</div>'


def _many(count: int) -> str:
    """A count of any size: 67.1M, 7.7·10²⁵; a float would not hold the largest ones."""
    digits = str(count)
    if len(digits) < 13:
        return number(count)
    return f"{digits[0]}.{digits[1]}·10" + str(len(digits) - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _range(low: int, high: int) -> str:
    return f"{number(low)} – {number(high)}"


def _drawn(drawn: Diagram) -> str:
    if drawn.drawn == drawn.stations:
        return ""
    return f'<p class="soft">{drawn.drawn} of {drawn.stations} steps are drawn; the others are repeats of them.</p>'


def _groups(report: Report, drawn: Diagram, numbers: dict[str, int]) -> str:
    if not report.groups:
        return section("Widths and heads", "No axis of this network bends.")
    rows = [_group(row, drawn, numbers[row.name]) for row in report.groups]
    head = ["group", "name", "units", "choices", "of parameters", "of FLOPs", "where it lives"]
    text = (
        "Units that live and die together. The shares are of the parameters and FLOPs that a group has a hand in, so "
        "that they add up to more than the whole."
    )
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    top = "".join(f'<th scope="col"{_kind(i)}>{name}</th>' for i, name in enumerate(head))
    return section(
        "Widths and heads",
        text,
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>',
    )


def _kind(column: int) -> str:
    return ' class="text"' if column in (0, 1, 3, 6) else ""


def _group(row: GroupRow, drawn: Diagram, index: int) -> Iterator[str]:
    tone = drawn.tones.get(index)
    paint = f' style="background:var(--wire{tone})"' if tone is not None else ""
    yield f'<th scope="row"><i class="wires chip"{paint}></i>g{index}</th>'
    yield f'<td class="text"><code>{escape(row.name)}</code></td>'
    yield f"<td>{row.units}</td>"
    yield f'<td class="text">{_choices(row.choices)}</td>'
    yield f"<td>{percent(row.parameters_share)}</td><td>{percent(row.flops_share)}</td>"
    yield f'<td class="where">{_where(row.where)}</td>'


def _choices(choices: Sequence[int]) -> str:
    return " / ".join(map(str, choices)) if choices else "whole"


def _where(places: Sequence[str]) -> str:
    """The first tensor, and the others on request; `name[axis]` each."""
    first, *others = (f"<code>{escape(place)}</code>" for place in places)
    if not others:
        return first
    return f"<details><summary>{first} and {len(others)} more</summary>{', '.join(others)}</details>"


def _depth(report: Report) -> str:
    if not report.depth:
        return ""
    rows = [[f"<code>{escape(name)}</code>", str(nodes), f"{count:,}"] for name, nodes, count in report.depth]
    text = "Residual branches, and whole modules where asked for, that may be left out; what enters them stays."
    return section("Depth", text, table(["branch", "operators", "parameters"], rows))


def _coverage(report: Report) -> str:
    share = percent(report.coverage)
    bar = f'<div class="meter" role="img" aria-label="{share}"><i style="width:{100 * report.coverage:.1f}%"></i></div>'
    count = f"{report.whole.parameters:,}"
    text = f"{share} of {count} parameters lie on an axis that bends or in a branch that may be left out."
    return section("Coverage", text, bar)


def _rigid(report: Report) -> str:
    if not report.rigid:
        return section("What stays rigid", "Nothing beyond the network's inputs and outputs.")
    rows = [
        [f"<code>{escape(r.operator or '–')}</code>", escape(r.module or "–"), escape(r.line or "–"), escape(r.reason)]
        for r in report.rigid
    ]
    text = "What stays as it is, where, and why; everything it touches keeps its size."
    return section("What stays rigid", text, table(["operator", "module", "source line", "why"], rows, texts=4))


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    return section("Notes", "", f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>")


def _cost(report: Report) -> str:
    whole, least = report.whole, report.smallest
    pairs = [("FLOPs for one sample", whole.flops, least.flops), ("parameters", whole.parameters, least.parameters)]
    pairs.append(("bytes of parameters", whole.bytes, least.bytes))
    rows = [[name, f"{a:,}", f"{b:,}", f"{a / b:.1f}×" if b else "–"] for name, a, b in pairs]
    text = "Two FLOPs for each multiply-accumulate of matrix operators; smallest is the smallest sub-network."
    return section("Cost", text, table(["", "whole", "smallest", "ratio"], rows))
