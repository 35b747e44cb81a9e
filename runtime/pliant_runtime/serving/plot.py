"""Line plots as SVG text, without any library."""

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#475569")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 64, 150, 34, 44

Points = Sequence[tuple[float, float]]


def chart(
    title: str, lines: Mapping[str, Points], *, x: str, y: str, limit: tuple[str, float] | None = None,
    log_x: bool = False, log_y: bool = False, dots: bool = False,
) -> str:  # fmt: skip
    """One chart.

    Args:
        title: above it.
        lines: points by name.
        x, y: what the axes show.
        limit: name and height of a dashed line.
        log_x, log_y: logarithmic axes; points that are not positive are left out.
        dots: draw points instead of lines.

    Raises:
        ValueError: no points.
    """
    kept = {
        name: [(a, b) for a, b in points if _drawn(a, log_x) and _drawn(b, log_y)] for name, points in lines.items()
    }
    everything = [point for points in kept.values() for point in points]
    if not everything:
        raise ValueError(f"nothing to draw for {title!r}")
    across = _Axis([a for a, _ in everything], log_x, LEFT, WIDTH - RIGHT)
    heights = [b for _, b in everything] + ([] if limit is None else [limit[1]])
    up = _Axis(heights, log_y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for value in across.ticks():
        at = across.at(value)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.4g}</text>')
    for value in up.ticks():
        at = up.at(value)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turn = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turn}>{html.escape(y)}</text>')
    if limit is not None:
        at, right = up.at(limit[1]), WIDTH - RIGHT
        parts.append(
            f'<line x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#111" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<text x="{right + 8}" y="{at + 4:.1f}">{html.escape(limit[0])}</text>')
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        spots = [(across.at(a), up.at(b)) for a, b in points]
        if dots:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.5" fill="{colour}" fill-opacity="0.5"/>' for a, b in spots
            ]
        elif spots:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y_text = TOP + 14 + 18 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 8}" y="{y_text - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 24}" y="{y_text}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def stacked(charts: Sequence[str]) -> str:
    """Several charts below each other in one SVG."""
    inner = [part.replace("<svg ", f'<svg y="{HEIGHT * n}" width="{WIDTH}" height="{HEIGHT}" ', 1)
             for n, part in enumerate(charts)]  # fmt: skip
    total = HEIGHT * len(charts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}">\n' + "\n".join(inner) + "\n</svg>\n"


def _drawn(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


class _Axis:
    """From values to places."""

    def __init__(self, values: Sequence[float], log: bool, begin: float, end: float) -> None:
        self._log, self._begin, self._end = log, begin, end
        low, high = self._of(min(values)), self._of(max(values))
        room = (high - low or abs(high) or 1.0) * 0.05
        self._low, self._high = low - room, high + room
        if not log and min(values) >= 0 and low < (high - low):
            self._low = 0.0

    def _of(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def at(self, value: float) -> float:
        share = (self._of(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        if self._log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            all_ticks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [t for t in all_ticks if self._low <= math.log10(t) <= self._high]
            return inside if len(inside) <= 10 else [t for t in inside if f"{t:e}"[0] == "1"]
        raw = (self._high - self._low) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
        first = math.ceil(self._low / step)
        return [step * n for n in range(first, math.floor(self._high / step) + 1)]
