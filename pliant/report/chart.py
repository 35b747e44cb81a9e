"""Small hand-written SVG charts: scatter, step and line series on two axes, with a text for every mark.

Every mark carries a `<title>`: browsers show it on hover and screen readers read it, and the page's script turns it
into a faster tooltip. Colours are CSS classes, so that one drawing follows the reader's light or dark scheme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 80, 18, 16, 48
"""Margins around the plot area in user units."""


def number(value: float) -> str:
    """A figure with at most three significant digits after the leading ones: 1234567 -> 1.23M, 0.01234 -> 0.0123."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    if value == int(value) and abs(value) < 1e4:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share as percent with one decimal: 0.9731 -> 97.3 %."""
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Axis:
    """How one direction is drawn.

    Args:
        label: the quantity and its unit.
        log: whether the scale is logarithmic (ignored where a value is not positive).
        show: figure to text for the ticks.
    """

    label: str
    log: bool = False
    show: Callable[[float], str] = number


@dataclass(frozen=True)
class Mark:
    """One point: data coordinates, the text shown on hover, and whether it is emphasised."""

    x: float
    y: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Series:
    """Marks drawn alike.

    Args:
        name: text in the legend; empty for none.
        marks: in drawing order.
        tone: which colour, 0 to 3; 0 is the accent.
        line: how marks are joined: "none", "line" or "step" (a front: hold, then jump).
        radius: of the marks, in user units; 0 draws the line only.
    """

    name: str
    marks: Sequence[Mark]
    tone: int = 0
    line: str = "none"
    radius: float = 4.0


@dataclass(frozen=True)
class Scale:
    """Data range to pixel range."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, log: bool) -> "Scale":
        """A scale that shows all values with a little air around them."""
        low, high = min(values), max(values)
        log = log and low > 0
        if log:
            pad = (high / low) ** 0.06 if high > low else 1.5
            return cls(low / pad, high * pad, start, stop, True)
        pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - pad, high + pad, start, stop)

    def __call__(self, value: float) -> float:
        """Where a value lies, in user units."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round figures inside the range: 1-2-5 steps, about five of them."""
        if not self.log or self.high / self.low < 8:
            return self._linear()
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) < 5 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if self.low <= tick <= self.high]

    def _linear(self) -> list[float]:
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Chart:
    """A drawing: series on two axes.

    Args:
        title: read by screen readers.
        x, y: the axes.
        series: drawn in this order.
        width, height: user units; the drawing scales with the page.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series] = field(default_factory=tuple)
    width: int = 720
    height: int = 380

    def svg(self, *, style: str = "") -> str:
        """The drawing as one `<svg>` element; with `style` (CSS text) it stands alone as a file.

        Raises:
            ValueError: there is nothing to draw, or a coordinate is not finite.
        """
        marks = [mark for series in self.series for mark in series.marks]
        if not marks:
            raise ValueError("a chart needs at least one mark, got none")
        if not all(math.isfinite(mark.x) and math.isfinite(mark.y) for mark in marks):
            raise ValueError("a chart needs finite coordinates")
        across = Scale.around([m.x for m in marks], LEFT, self.width - RIGHT, self.x.log)
        up = Scale.around([m.y for m in marks], self.height - BOTTOM, TOP, self.y.log)
        inner = [self._grid(across, up)]
        inner += [_series(series, across, up) for series in self.series]
        inner.append(self._legend())
        css = f"<style>{style}</style>" if style else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(self.title)}">{css}{"".join(inner)}</svg>'
        )

    def _grid(self, across: Scale, up: Scale) -> str:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        parts = []
        for tick in across.ticks():
            x = across(tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{self.x.show(tick)}</text>'
            )
        for tick in up.ticks():
            y = up(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{self.y.show(tick)}</text>'
            )
        middle = (LEFT + right) / 2
        parts.append(
            f'<text class="axis" x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(self.x.label)}</text>'
        )
        parts.append(
            f'<text class="axis" transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.label)}</text>'
        )
        return "".join(parts)

    def _legend(self) -> str:
        named = [series for series in self.series if series.name]
        if len(named) < 2:
            return ""
        parts = []
        base = self.height - BOTTOM - 12 - 18 * (len(named) - 1)
        for row, series in enumerate(named):
            y = base + 18 * row
            right = self.width - RIGHT - 12
            parts.append(f'<circle class="dot tone{series.tone}" cx="{right}" cy="{y - 4}" r="4"/>')
            parts.append(f'<text class="tick" x="{right - 10}" y="{y}" text-anchor="end">{escape(series.name)}</text>')
        return "".join(parts)


def _series(series: Series, across: Scale, up: Scale) -> str:
    parts = []
    points = [(across(mark.x), up(mark.y)) for mark in series.marks]
    if series.line != "none" and len(points) > 1:
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for x, y in points[1:]:
            path += f"H{x:.1f}V{y:.1f}" if series.line == "step" else f"L{x:.1f} {y:.1f}"
        parts.append(f'<path class="line tone{series.tone}" d="{path}"/>')
    if series.radius:
        for mark, (x, y) in zip(series.marks, points, strict=True):
            extra, radius = (" strong", series.radius * 1.5) if mark.strong else ("", series.radius)
            parts.append(
                f'<circle class="dot mark tone{series.tone}{extra}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" '
                f'tabindex="0"><title>{escape(mark.text)}</title></circle>'
            )
    return "".join(parts)
