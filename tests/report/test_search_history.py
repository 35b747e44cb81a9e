from pathlib import Path

import numpy as np

from pliant.core import Config, Knob, Space
from pliant.report.contents import Contents, quantity
from pliant.report.page import page
from pliant.report.search_history import SearchHistory, predictor_quality, search_history
from pliant.search import Axis, Front, Point
from pliant.search.codes import decode, draw
from pliant.search.outcome import FAILED, Outcome
from pliant.search.predictors import Quality
from pliant.search.trials import check_run, open_trials

SPACE = Space([Knob(f"width:l{i}", (8, 16, 24, 32)) for i in range(3)])
AXES = (Axis("accuracy", True), Axis("flops"))


def points(n: int) -> list[Point]:
    rows = np.unique(draw(SPACE, 4 * n, np.random.default_rng(0)), axis=0)[:n]
    return [
        Point(config, {"accuracy": sum(config.values()) / 100, "flops": float(np.prod(list(config.values())))})
        for config in (decode(SPACE, row) for row in rows)
    ]


def test_predictors_are_judged_where_there_is_enough() -> None:
    assert predictor_quality(Front(points(19), AXES), SPACE) == ()
    found = dict(predictor_quality(Front(points(30), AXES), SPACE))
    assert set(found) == {"accuracy", "flops"}
    assert all(quality.tau > 0.8 and quality.points == 30 for quality in found.values())
    same = [Point(p.config, {"accuracy": 0.5, "flops": p.values["flops"]}) for p in points(30)]
    assert [key for key, _ in predictor_quality(Front(same, AXES), SPACE)] == ["flops"]


def test_the_history_of_a_run_folder(tmp_path: Path) -> None:
    check_run(tmp_path, SPACE, {"name": "Toy", "tensors": {}})
    trials = open_trials(tmp_path, "accuracy+flops, seed 0, x", SPACE, AXES)
    for point in points(3):
        trials.add(point)
    trials.add(Outcome(Config(SPACE.largest()), FAILED, problem="objective x raised", seconds=2.0))
    history = search_history(tmp_path, Front(points(3), AXES), space=SPACE)
    assert history.ended == {"finished": 3, "failed": 1}
    assert history.problems == ("objective x raised",)
    assert history.told() == "Trials: 3 finished, 1 failed in 2 s."
    assert SearchHistory({"finished": 3}).told() == ""
    assert search_history(tmp_path / "none", Front(points(3), AXES), space=SPACE).ended == {}


def test_the_page_shows_it() -> None:
    history = SearchHistory(
        {"finished": 3, "failed": 1}, ("x < y",), 0.0, (("flops", Quality(0.87, 1234.5, 0.92, 0.9, 30)),)
    )
    axes = tuple(quantity(axis.key, maximise=axis.maximise) for axis in AXES)
    values = tuple(dict(point.values) for point in points(3))
    text = page(
        Contents("net", "data", "classify", "accuracy", axes, (), trials=values, quality=(0.1, 0.2), history=history)
    )
    assert "Trials: 3 finished, 1 failed." in text
    assert "x &lt; y" in text
    assert "<td>0.87</td><td>1234</td><td>92 %</td><td>30</td>" in text or "<td>0.87</td><td>1235</td>" in text
    assert "FLOPs per input" in text
