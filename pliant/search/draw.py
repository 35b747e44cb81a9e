"""A front as text and as one self-contained piece of HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

_WIDTH, _HEIGHT, _MARGIN = 460.0, 260.0, 44.0


class _Axis(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def maximise(self) -> bool: ...


class _Point(Protocol):
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def values(self) -> Mapping[str, float]: ...
    @property
    def spread(self) -> Mapping[str, float]: ...
    @property
    def ties(self) -> tuple[str, ...]: ...


def number(value: float) -> str:
    """Four significant digits, whole numbers with thousands separated."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _cell(point: _Point, key: str) -> str:
    text = number(point.values[key])
    if key in point.spread:
        text += f" ±{point.spread[key] / 2:.2g}"
    return text + (" ~" if key in point.ties else "")


def _short(config: Mapping[str, Any]) -> str:
    values = [("1" if value else "0") if isinstance(value, bool) else str(value) for value in config.values()]
    text = "-".join(values) or "(only one)"
    return text if len(text) <= 60 else text[:57] + "..."


def _heads(axes: Sequence[_Axis]) -> list[str]:
    return [f"{axis.key} {'↑' if axis.maximise else '↓'}" for axis in axes]


def table_of(axes: Sequence[_Axis], points: Sequence[_Point], trials: int) -> str:
    """An aligned table, one line per point."""
    rows = [[*_heads(axes), "config"]]
    rows += [[*(_cell(point, axis.key) for axis in axes), _short(point.config)] for point in points]
    widths = [max(len(row[i]) for row in rows) for i in range(len(axes))]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    lines.append(f"{len(points)} on the front of {trials} measured")
    if any(point.ties for point in points):
        lines.append("~ too close to a neighbour in speed for the measurement to rank them")
    return "\n".join(lines)


def html_of(axes: Sequence[_Axis], points: Sequence[_Point], trials: Sequence[_Point]) -> str:
    """A table and, for two objectives or more, a scatter plot of the first over the second as inline SVG."""
    head = "".join(f"<th>{escape(name)}</th>" for name in [*_heads(axes), "config"])
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:right'>{escape(_cell(point, axis.key))}</td>" for axis in axes)
        + f"<td title='{escape(str(dict(point.config)))}'>{escape(_short(point.config))}</td></tr>"
        for point in points
    )
    picture = _scatter(axes[1], axes[0], points, trials) if len(axes) > 1 and trials else ""
    note = f"<p>{len(points)} on the front of {len(trials)} measured</p>"
    return f"<div>{picture}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}</div>"


def _scatter(x: _Axis, y: _Axis, points: Sequence[_Point], trials: Sequence[_Point]) -> str:
    def place(key: str, begin: float, end: float) -> dict[float, float]:
        values = [point.values[key] for point in trials]
        low, span = min(values), (max(values) - min(values)) or 1.0
        return {value: begin + (value - low) / span * (end - begin) for value in values}

    across = place(x.key, _MARGIN, _WIDTH - 12)
    up = place(y.key, _HEIGHT - _MARGIN, 12)

    def dot(point: _Point, style: str) -> str:
        a, b = point.values[x.key], point.values[y.key]
        title = escape(f"{y.key} {number(b)}, {x.key} {number(a)}")
        return f"<circle cx='{across[a]:.1f}' cy='{up[b]:.1f}' {style}><title>{title}</title></circle>"

    grey = "".join(dot(point, "r='3' fill='#b8bec8'") for point in trials)
    blue = "".join(dot(point, "r='4.5' fill='#1f6feb'") for point in points)
    line = " ".join(f"{across[p.values[x.key]]:.1f},{up[p.values[y.key]]:.1f}" for p in points)
    xs, ys = sorted(across), sorted(up)
    base, right = _HEIGHT - _MARGIN, _WIDTH - 12
    labels = "".join(
        f"<text x='{a:.0f}' y='{b:.0f}' text-anchor='{anchor}'>{escape(text)}</text>"
        for a, b, anchor, text in [
            (_MARGIN, base + 15, "start", number(xs[0])),
            (right, base + 15, "end", number(xs[-1])),
            ((_MARGIN + right) / 2, base + 30, "middle", x.key),
            (_MARGIN - 4, base, "end", number(ys[0])),
            (_MARGIN - 4, 20, "end", number(ys[-1])),
            (_MARGIN + 6, 12, "start", y.key),
        ]
    )
    frame = f"<path d='M{_MARGIN} 12V{base}H{right}' fill='none' stroke='#8a919c'/>"
    return (
        f"<svg viewBox='0 0 {_WIDTH:.0f} {_HEIGHT:.0f}' width='{_WIDTH:.0f}' font-family='sans-serif' font-size='10'"
        f" fill='#57606a' role='img' aria-label='{escape(y.key)} over {escape(x.key)}'>{frame}{grey}"
        f"<polyline points='{line}' fill='none' stroke='#1f6feb' stroke-width='1'/>{blue}{labels}</svg>"
    )
