"""The page: one HTML file without any outside reference, from `Contents`."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from pliant.report.chart import Axis, Chart, Mark, Series, number, percent
from pliant.report.contents import KNOWN, Candidate, Contents, Quantity
from pliant.report.search_history import HEAD
from pliant.report.style import CHART, CHART_VARIABLES, PAGE, SCRIPT

MOST_CLASSES = 20
"""Columns of the table of classes; with more classes those that lose most are shown."""


def show(what: Quantity, value: float) -> str:
    """A value as text, shares as percent."""
    return percent(value) if what.share else number(value)


def section(title: str, text: str, *body: str) -> str:
    """A part of the page: its heading, a lead of ready HTML, and what follows."""
    lead = f'<p class="soft">{text}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(body)}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", texts: int = 1) -> str:
    """A table of ready HTML cells; the first of each row is its header, the first `texts` columns are text."""

    def cell(tag: str, index: int, content: str, scope: str) -> str:
        kind = ' class="text"' if index < texts else ""
        return f"<{tag}{kind}{scope}>{content}</{tag}>"

    top = "".join(cell("th", index, name, ' scope="col"') for index, name in enumerate(head))
    lines = []
    for row in rows:
        cells = [
            cell("th" if i == 0 else "td", i, text, ' scope="row"' if i == 0 else "") for i, text in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _drawing(chart: Chart) -> str:
    return f'<div class="drawing">{chart.svg()}</div>'


def _tip(candidate: Candidate, quantities: Sequence[Quantity]) -> str:
    lines = [f"{candidate.name}: {candidate.summary}"]
    lines += [f"{q.label}: {show(q, candidate.values[q.key])}" for q in quantities if q.key in candidate.values]
    return "\n".join(lines)


def _shown(contents: Contents) -> list[Quantity]:
    """The objectives, then costs that every sub-network has."""
    extra = [q for key, q in KNOWN.items() if key in ("flops", "parameters")]
    named = {q.key for q in contents.objectives}
    known = [q for q in extra if q.key not in named and all(q.key in c.values for c in contents.front)]
    return [*contents.objectives, *known]


def pareto_chart(contents: Contents) -> Chart:
    """First objective over the second, every trial and the front. Raises `ValueError` with fewer than two."""
    if len(contents.objectives) < 2:
        raise ValueError("a Pareto chart needs two objectives")
    up, across = contents.objectives[:2]
    shown = _shown(contents)
    on_front = {(c.values[across.key], c.values[up.key]) for c in contents.front}
    others = [(t[across.key], t[up.key]) for t in contents.trials]
    trials = [
        Mark(x, y, f"{up.label}: {show(up, y)}\n{across.label}: {show(across, x)}")
        for x, y in others
        if (x, y) not in on_front
    ]
    points = [Mark(c.values[across.key], c.values[up.key], _tip(c, shown)) for c in contents.front]
    points.sort(key=lambda mark: mark.x)
    series = [Series("evaluated", trials, tone=1, radius=3.5), Series("Pareto front", points, line="step", radius=5)]
    whole = contents.largest
    if whole and {up.key, across.key} <= set(whole.values):
        mark = Mark(whole.values[across.key], whole.values[up.key], _tip(whole, shown))
        series.append(Series("whole network", [mark], tone=2, radius=5))
    high = [mark.x for part in series for mark in part.marks]
    wide = min(high) > 0 and max(high) / min(high) > 10
    return Chart(
        f"{up.label} over {across.label}",
        Axis(across.label, log=wide),
        Axis(up.label, show=percent if up.share else number),
        [part for part in series if part.marks],
    )


def _front(contents: Contents) -> str:
    shown = _shown(contents)
    tested = any(c.test is not None for c in contents.front)
    head = ["", "keeps", *(escape(q.label) for q in shown)]
    if tested:
        head.append(f"test {escape(contents.metric)}")
    everyone = [*contents.front, *([contents.largest] if contents.largest else [])]
    rows = []
    for candidate in everyone:
        row = [escape(candidate.name), escape(candidate.summary)]
        row += [show(q, candidate.values[q.key]) if q.key in candidate.values else "–" for q in shown]
        if tested:
            row.append("–" if candidate.test is None else _metric(contents, candidate.test))
        rows.append(row)
    chart = _drawing(pareto_chart(contents)) if len(contents.objectives) > 1 else ""
    text = (
        "No other sub-network that was evaluated is at least as good as one of these in everything and better in "
        "something. Point at a mark for its figures."
    )
    configs = [[escape(c.name), f"<code>{escape(c.config.to_json())}</code>"] for c in contents.front]
    full = "".join(f'<tr><th scope="row">{a}</th><td class="wrap">{b}</td></tr>' for a, b in configs)
    more = f'<details><summary>Full configurations</summary><div class="scroll"><table>{full}</table></div></details>'
    return section("Pareto front", text, chart, table(head, rows, texts=2), more)


def _metric(contents: Contents, value: float) -> str:
    return percent(value) if contents.task == "classify" or "accuracy" in contents.metric else number(value)


def _worst_classes(contents: Contents) -> list[int]:
    order = range(len(contents.class_names))
    if len(contents.class_names) <= MOST_CLASSES:
        return list(order)
    lost = [min(c.change[index][0] for c in contents.front if c.change) for index in order]
    return sorted(sorted(order, key=lambda index: lost[index])[:MOST_CLASSES])


def _heat_cell(change: float, error: float) -> str:
    points = 100 * change
    text = f"{points:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")
    if abs(change) <= 2 * error or text == "0.0":
        return f'<td class="noise">{text}</td>'
    depth = min(55, 10 + 4 * abs(points))
    return f'<td class="{"gain" if change > 0 else "loss"}" style="--deep:{depth:.0f}%">{text}</td>'


def _losses(contents: Contents) -> str:
    rated = [c for c in contents.front if c.change]
    if not rated or contents.largest is None:
        return ""
    columns = _worst_classes(contents)
    named = [
        ("all", sum(contents.class_counts)),
        *((contents.class_names[i], contents.class_counts[i]) for i in columns),
    ]
    head = "".join(f'<th scope="col">{escape(name)}<br><small>n={count}</small></th>' for name, count in named)
    rows = []
    for candidate in rated:
        cells = "".join(_heat_cell(*change) for change in (candidate.total, *(candidate.change[i] for i in columns)))
        rows.append(f'<tr><th scope="row" class="text">{escape(candidate.name)}</th>{cells}</tr>')
    rights = [contents.largest.test or 0.0, *(contents.largest.classes[i] for i in columns)]
    whole = "".join(f"<td>{percent(right)}</td>" for right in rights)
    base = f'<tr class="strong"><th scope="row" class="text">whole network</th>{whole}</tr>'
    note = "" if len(columns) == len(contents.class_names) else f" The {len(columns)} classes that lose most are shown."
    text = (
        "Test accuracy of each class, as percentage points against the whole network. Cells without colour are within "
        f"two standard errors of no change.{note}"
    )
    heat = (
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col" class="text">class</th>'
        f"{head}</tr></thead>"
        f"<tbody>{''.join(rows)}{base}</tbody></table></div>"
    )
    return section("What each sub-network loses", text, heat)


def _search(contents: Contents) -> str:
    if len(contents.quality) < 2:
        return ""
    marks = [Mark(i + 1, q, f"after {i + 1} sub-networks: {q:.4f}") for i, q in enumerate(contents.quality)]
    quality = Series("", marks, line="step", radius=2.5)
    chart = Chart("Search progress", Axis("sub-networks evaluated"), Axis("hypervolume"), [quality], height=280)
    text = (
        "Hypervolume of the front found so far: the share of the box between the worst and the best value of each "
        "objective that the front dominates. Flat at the end means that more trials would find little."
    )
    return section("Search", text, _drawing(chart), _history(contents))


def _history(contents: Contents) -> str:
    """How trials ended, and what the search could predict."""
    history = contents.history
    if history is None:
        return ""
    body = f"<p>{escape(history.told())}</p>" if history.told() else ""
    if history.problems:
        body += f"<ul>{''.join(f'<li>{escape(problem)}</li>' for problem in history.problems)}</ul>"
    if history.predictors:
        labels = {q.key: q.label for q in contents.objectives}
        rows = [[escape(labels.get(row[0], row[0])), *row[1:]] for row in history.rows()]
        caption = "Predictions of sub-networks that were left out, in five parts"
        body += table(HEAD, rows, caption=caption)
    return body


def _training(contents: Contents) -> str:
    epochs = [row for row in contents.metrics if "metric" in row]
    steps = [row for row in contents.metrics if "metric" not in row]
    charts = []
    if len(steps) > 1:
        charts.append(_curve([(row["step"], row["loss"]) for row in thinned(steps)], "step", "training loss", tone=0))
    valued = [(row["epoch"] + 1, row["val"]) for row in epochs if row.get("val") is not None]
    if len(valued) > 1:
        charts.append(_curve(valued, "epoch", f"validation {epochs[0]['metric']}", tone=3))
    return section("Training", _took(contents), *charts) if charts else ""


def _conflict(contents: Contents) -> str:
    """Cosines between gradients, lower half and diagonal; values below zero are marked."""
    if len(contents.conflict) < 2:
        return ""
    names = [name for name, _ in contents.conflict]
    rows = []
    for place, (name, values) in enumerate(contents.conflict):
        cells = "".join(_cosine(value) for value in values[:place]) + "<td></td>" * (len(names) - 1 - place)
        rows.append(f'<tr><th scope="row" class="text">{escape(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names[:-1])
    text = (
        "Cosine between the gradients of two sub-networks on the weights that both use, on some training samples: 1 "
        "means that a step for one is a step for the other, below 0 that it undoes some of the other's."
    )
    body = (
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col" class="text">gradient of</th>'
        f"{head}</tr></thead><tbody>{''.join(rows[1:])}</tbody></table></div>"
    )
    return section("Do the sizes agree?", text, body)


def _cosine(value: float) -> str:
    if math.isnan(value):
        return "<td>–</td>"
    depth = min(55, 5 + 50 * abs(value))
    return f'<td class="{"gain" if value > 0 else "loss"}" style="--deep:{depth:.0f}%">{value:.2f}</td>'


def _separate(contents: Contents) -> str:
    """Sub-networks beside networks of their sizes that were trained alone, and what both cost."""
    if not contents.separate:
        return ""
    rows = []
    for one in contents.separate:
        change, error = one.change
        apart = _heat_cell(change, error) if error is not None else f"<td>{change:+.4g}</td>"
        figures = (_metric(contents, one.family), _metric(contents, one.alone))
        cells = "".join(f"<td>{text}</td>" for text in figures) + apart + f"<td>{one.cpu_seconds:.0f}</td>"
        name = f'<th scope="row" class="text">{escape(one.name)}</th><td class="text">{escape(one.summary)}</td>'
        rows.append(f"<tr>{name}{cells}</tr>")
    metric = f"test {escape(contents.metric)}"
    named = [f"{metric}, in the family", f"{metric}, alone", "difference", "CPU s alone"]
    head = "".join(f'<th scope="col">{text}</th>' for text in named)
    epochs = sorted({one.epochs for one in contents.separate})
    text = (
        "Networks of these sizes, each trained alone from a fresh start for "
        f"{' or '.join(map(str, epochs))} epochs, beside the sub-networks of the family. {_cost_of_both(contents)}"
    )
    if any(one.change[1] is not None for one in contents.separate):
        text += " Differences are percentage points; those without colour are within two standard errors of none."
    body = (
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col" class="text"></th>'
        f'<th scope="col" class="text">keeps</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    return section("Against separately trained networks", text, body)


def _cost_of_both(contents: Contents) -> str:
    alone = sum(one.cpu_seconds for one in contents.separate)
    count = len(contents.separate)
    together = f"{'It' if count == 1 else f'These {count}'} took {alone:.0f} CPU s" + (" together" if count > 1 else "")
    if not contents.metrics:
        return f"{together}."
    family = contents.metrics[-1]["cpu_seconds"]
    return f"{together}, the whole family of {number(contents.space_size)} took {family:.0f} CPU s."


def _took(contents: Contents) -> str:
    last = contents.metrics[-1]
    return f"{last['step']} steps, {last['seconds']:.0f} s ({last['cpu_seconds']:.0f} CPU s)."


def _curve(points: Sequence[tuple[float, float]], across: str, up: str, *, tone: int) -> str:
    marks = [Mark(x, y, f"{across} {x:g}\n{up}: {y:.4g}") for x, y in points]
    line = Series("", marks, tone=tone, line="line", radius=2.5 if len(marks) < 80 else 0)
    return _drawing(Chart(f"{up} by {across}", Axis(across), Axis(up), [line], height=260))


def thinned(rows: Sequence[dict[str, Any]], most: int = 150) -> list[dict[str, Any]]:
    """At most `most` rows: the loss is averaged over each stretch, the rest is that of its last row."""
    size = -(-len(rows) // most)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [{**part[-1], "loss": sum(row["loss"] for row in part) / len(part)} for part in parts]


def _look(contents: Contents) -> str:
    look: dict[str, Any] = contents.look
    if not look:
        return ""
    groups = [
        [
            f"<code>{escape(str(group['name']))}</code>",
            escape(str(group["kind"])),
            str(group["units"]),
            percent(group["parameters_share"]),
            percent(group["flops_share"]),
        ]
        for group in look.get("groups", [])
    ]
    parts = [table(["bends", "kind", "units", "of parameters", "of FLOPs"], groups, texts=2)] if groups else []
    depth = [[f"<code>{escape(str(d['name']))}</code>", str(len_of(d["nodes"]))] for d in look.get("depth", [])]
    if depth:
        parts.append(table(["may be left out", "operators"], depth))
    rigid = [
        [
            f"<code>{escape(str(item['operator']))}</code>",
            escape(str(item["module"])),
            escape(str(item.get("line") or "–")),
            escape(str(item["reason"])),
        ]
        for item in look.get("rigid", [])
    ]
    if rigid:
        parts.append(table(["stays rigid", "module", "source line", "why"], rigid, texts=4))
    else:
        parts.append("<p>Nothing is rigid beyond the network's inputs and outputs.</p>")
    text = f"{percent(look['coverage'])} of the parameters lie in something that bends." if "coverage" in look else ""
    return section("What bends and what stays rigid", text, *parts)


def len_of(value: Any) -> int:
    """A count, given as itself or as a list."""
    return value if isinstance(value, int) else len(value)


def _figures(contents: Contents) -> str:
    cells = [(number(contents.space_size), "sub-networks in one")]
    cells.append((str(len(contents.front)), f"on the front, of {len(contents.trials)} evaluated"))
    whole = contents.largest
    if whole and whole.test is not None:
        cells.append((_metric(contents, whole.test), f"test {contents.metric}, whole network"))
    near = _nearly_as_good(contents)
    if near:
        cells.append(near)
    body = "".join(f'<div class="figure"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cells)
    return f'<div class="figures">{body}</div>'


def _nearly_as_good(contents: Contents) -> tuple[str, str] | None:
    """How much cheaper the cheapest sub-network within one point of the whole network is, both on test."""
    whole = contents.largest
    if whole is None or whole.test is None or len(contents.objectives) < 2 or contents.task != "classify":
        return None
    key = contents.objectives[1].key
    good = [c for c in contents.front if c.test is not None and c.test >= whole.test - 0.01 and key in c.values]
    if not good or not whole.values.get(key):
        return None
    cheap = min(good, key=lambda c: c.values[key])
    factor = whole.values[key] / cheap.values[key]
    what = "faster" if key == "latency_ms" else f"less {contents.objectives[1].label}"
    return f"{factor:.1f}×", f"{what} within 1 point of test accuracy ({cheap.name})"


def page(contents: Contents) -> str:
    """The whole document. It names no other file and no address, and works without scripts too."""
    title = f"{contents.model} on {contents.data}"
    conditions = table(["", ""], [[escape(a), escape(b)] for a, b in contents.conditions], texts=2)
    body = [
        f"<h1>{escape(contents.model)} <span class='soft'>on {escape(contents.data)}</span></h1>",
        '<p class="soft">One training, many networks: what was found and what it costs.</p>',
        _figures(contents),
        _front(contents) if contents.front else "",
        _losses(contents),
        _search(contents),
        _training(contents),
        _separate(contents),
        _conflict(contents),
        _look(contents),
        section("Conditions", "How and where the figures above were measured.", conditions),
    ]
    return document(f"{title} · pliant report", body)


def document(title: str, body: Sequence[str], *, style: str = "") -> str:
    """Parts of ready HTML as a whole document, with more CSS where `style` is given."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CHART_VARIABLES}{CHART}{PAGE}{style}</style></head>"
        f'<body><main>{"".join(body)}<footer>Written by pliant.</footer></main><div id="tip" role="status"></div>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
