"""The Pareto front as a picture of its own, for a README or a page of documentation."""

from pathlib import Path

from pliant.core import write_atomic
from pliant.report.chart import Axis, Chart, Mark, Series, number, percent
from pliant.report.contents import quantity
from pliant.report.style import CHART, CHART_VARIABLES
from pliant.search import Front


def pareto_svg(front: Front, path: str | Path) -> Path:
    """Writes a front as one SVG file that follows the reader's light or dark scheme.

    Args:
        front: with at least two objectives: the first is drawn upwards, the second to the right.
        path: the file.

    Returns:
        The path.

    Raises:
        ValueError: fewer than two objectives, or no points.
        PliantError: the file cannot be written.
    """
    if len(front.objectives) < 2 or not len(front):
        raise ValueError(f"a picture of a front needs two objectives and a point, got {front!r}")
    up, across = front.objectives[:2]
    chosen = {id(point) for point in front}

    def mark(values: dict[str, float]) -> Mark:
        text = "\n".join(f"{quantity(axis.key).label}: {values[axis.key]:.4g}" for axis in front.objectives)
        return Mark(values[across.key], values[up.key], text)

    others = [mark(dict(point.values)) for point in front.trials if id(point) not in chosen]
    points = sorted((mark(dict(point.values)) for point in front), key=lambda m: m.x)
    series = [Series("evaluated", others, tone=1, radius=3.5), Series("Pareto front", points, line="step", radius=5)]
    values = [point.values[across.key] for point in front.trials]
    show = percent if quantity(up.key).share else number
    chart = Chart(
        "Pareto front",
        Axis(quantity(across.key).label, log=min(values) > 0 and max(values) / min(values) > 10),
        Axis(quantity(up.key).label, show=show),
        [part for part in series if part.marks],
    )
    path = Path(path)
    write_atomic(path, chart.svg(style=CHART_VARIABLES.replace(":root", "svg") + CHART) + "\n")
    return path
