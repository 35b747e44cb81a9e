import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pliant.core import Config
from pliant.report import pareto_svg
from pliant.search import Axis, Front, Point

AXES = (Axis("accuracy", maximise=True), Axis("latency_ms", unit="ms"))


def front(*pairs: tuple[float, float]) -> Front:
    points = [Point(Config({"width:a": i}), {"accuracy": a, "latency_ms": b}) for i, (a, b) in enumerate(pairs)]
    return Front(points, AXES)


def test_the_picture_is_one_svg_with_a_mark_for_every_trial(tmp_path: Path) -> None:
    path = pareto_svg(front((0.9, 1.0), (0.95, 2.0), (0.8, 3.0)), tmp_path / "p.svg")
    root = ET.parse(path).getroot()
    marks = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if "mark" in c.attrib["class"]]
    assert sorted(mark.attrib["class"].split()[2] for mark in marks) == ["tone0", "tone0", "tone1"]
    assert "prefers-color-scheme:dark" in path.read_text()


def test_a_front_without_two_objectives_or_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two objectives"):
        pareto_svg(front(), tmp_path / "p.svg")
    with pytest.raises(ValueError, match="two objectives"):
        pareto_svg(Front([], AXES[:1]), tmp_path / "p.svg")
    assert list(tmp_path.iterdir()) == []
