import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pliant.core import Config, PliantError
from pliant.search import Axis, Front, Point

AXES = (Axis("accuracy", True), Axis("latency_ms", False, "ms", "latency"))


def point(accuracy: float, latency: float, **more: object) -> Point:
    return Point(Config({"width:a": int(1000 * latency)}), {"accuracy": accuracy, "latency_ms": latency}, **more)  # type: ignore[arg-type]


def values(front: Front) -> list[tuple[float, float]]:
    return [(p.values["accuracy"], p.values["latency_ms"]) for p in front]


@pytest.fixture
def front() -> Front:
    return Front([point(0.9, 3.0), point(0.7, 1.0), point(0.6, 2.0), point(0.8, 2.0), point(0.8, 2.5)], AXES)


def test_front_keeps_what_nothing_beats_cheapest_first(front: Front) -> None:
    assert values(front) == [(0.7, 1.0), (0.8, 2.0), (0.9, 3.0)]
    assert len(front) == 3
    assert len(front.trials) == 5
    assert front[0] == front.points[0]
    assert repr(front) == "Front(3 of 5 points; accuracy, latency_ms)"


def test_front_keeps_ties() -> None:
    one, other = Config({"width:a": 1}), Config({"width:a": 2})
    tied = Front([Point(c, {"accuracy": 0.5, "latency_ms": 1.0}) for c in (one, other)], AXES)
    assert {p.config for p in tied} == {one, other}


def test_front_refuses_bad_points() -> None:
    with pytest.raises(ValueError, match="no finite value of accuracy"):
        Front([point(float("nan"), 0.5)], AXES)
    with pytest.raises(ValueError, match="different names"):
        Front([], [AXES[0], AXES[0]])
    with pytest.raises(ValueError, match="different names"):
        Front([], [])


def test_front_within_keeps_the_limits(front: Front) -> None:
    assert values(front.within(latency_ms=2.0)) == [(0.7, 1.0), (0.8, 2.0)]
    assert values(front.within(latency=2.0)) == [(0.7, 1.0), (0.8, 2.0)]
    assert values(front.within(accuracy=0.75)) == [(0.8, 2.0), (0.9, 3.0)]
    assert values(front.within(accuracy=0.75, latency_ms=2)) == [(0.8, 2.0)]
    assert len(front.within(latency_ms=0.5)) == 0


def test_front_best_within_limits(front: Front) -> None:
    assert front.best("accuracy").values["accuracy"] == 0.9
    assert front.best().values["accuracy"] == 0.9
    assert front.best("accuracy", latency_ms=2.2).values["accuracy"] == 0.8
    assert front.best("latency", accuracy=0.8).values["latency_ms"] == 2.0


def test_front_best_of_equals_is_the_cheapest() -> None:
    third = (*AXES, Axis("flops"))
    rows = [(0.9, 1.0, 30.0), (0.9, 2.0, 20.0)]
    points = [
        Point(Config({"width:a": i}), dict(zip(["accuracy", "latency_ms", "flops"], row, strict=True)))
        for i, row in enumerate(rows)
    ]
    assert Front(points, third).best("accuracy").values["latency_ms"] == 1.0


def test_front_best_names_the_closest_when_nothing_fits(front: Front) -> None:
    with pytest.raises(ValueError, match=r"no point has latency_ms <= 0.5; the closest has accuracy=0.7, latency_ms=1"):
        front.best("accuracy", latency_ms=0.5)
    with pytest.raises(ValueError, match=r"accuracy >= 0.95 and latency_ms <= 2; the closest has accuracy=0.8"):
        front.best("accuracy", accuracy=0.95, latency_ms=2)
    with pytest.raises(ValueError, match="the front is empty"):
        front.within(latency_ms=0.5).best()


def test_front_names_its_objectives_when_one_is_unknown(front: Front) -> None:
    for ask in (lambda: front.best("flops"), lambda: front.within(flops=3), lambda: front.hypervolume({"flops": 1})):
        with pytest.raises(ValueError, match="no objective 'flops' in this front; it has accuracy, latency_ms"):
            ask()
    with pytest.raises(TypeError, match="limit of latency_ms must be a number, got '2'"):
        front.within(latency_ms="2")  # type: ignore[arg-type]


def test_front_pick_spreads_over_the_second_objective() -> None:
    many = Front([point(0.1 * i, float(i)) for i in range(1, 10)], AXES)
    assert [p.values["latency_ms"] for p in many.pick(3)] == [1.0, 5.0, 9.0]
    assert [p.values["latency_ms"] for p in many.pick(1)] == [1.0]
    assert len(many.pick(50)) == 9
    with pytest.raises(ValueError, match="at least one point, got 0"):
        many.pick(0)


def test_front_hypervolume_by_hand(front: Front) -> None:
    # reference (0.5, 4): 0.2 x 3 + 0.1 x 2 + 0.1 x 1
    assert front.hypervolume({"accuracy": 0.5, "latency_ms": 4.0}) == pytest.approx(0.9)
    # the worst of the trials, (0.6, 3): 0.1 x 2 + 0.1 x 1
    assert front.hypervolume() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="latency_ms missing"):
        front.hypervolume({"accuracy": 0.5})
    assert Front([], AXES).hypervolume() == 0


def test_front_survives_save_and_load(front: Front, tmp_path: Path) -> None:
    front = Front([*front.trials, point(0.95, 4.0, spread={"latency_ms": 0.1}, ties=("latency_ms",))], AXES)
    front.save(tmp_path / "front.json")
    assert Front.load(tmp_path / "front.json") == front
    assert Front.load(tmp_path) == front
    assert [p["values"] for p in json.loads((tmp_path / "front.json").read_text())["points"]] == [
        p.values for p in front
    ]


def test_front_load_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match="no such file"):
        Front.load(tmp_path / "front.json")
    (tmp_path / "front.json").write_text('{"version": 1, "objectives": []}')
    with pytest.raises(PliantError, match="not a front"):
        Front.load(tmp_path)
    (tmp_path / "front.json").write_text('{"version": 99}')
    with pytest.raises(PliantError, match="version 99"):
        Front.load(tmp_path)
    (tmp_path / "front.json").write_text("[]")
    with pytest.raises(PliantError, match="not a front"):
        Front.load(tmp_path)


def test_front_as_text(front: Front) -> None:
    tied = Front([*front.trials, point(0.95, 3.1, spread={"latency_ms": 0.4}, ties=("latency_ms",))], AXES)
    lines = str(tied).splitlines()
    assert lines[0].split() == ["accuracy", "↑", "latency_ms", "↓", "config"]
    assert lines[4].split() == ["0.95", "3.1", "±0.2", "~", "3100"]
    assert lines[5] == "4 on the front of 6 measured"
    assert "too close" in lines[6]


def test_front_as_html_is_well_formed_and_self_contained(front: Front) -> None:
    html = front._repr_html_()
    root = ElementTree.fromstring(html)
    assert len(root.findall(".//tbody/tr")) == 3
    assert len(root.findall(".//circle")) == 5 + 3
    assert "http" not in html
    assert ElementTree.fromstring(Front([], AXES)._repr_html_()).findall(".//circle") == []
    single = Front([Point(Config({}), {"a<b": 1.0})], [Axis("a<b")])
    assert "a&lt;b" in single._repr_html_()
    ElementTree.fromstring(single._repr_html_())
