import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pliant.core import PliantError
from pliant.data import Dataset, load
from pliant.elastic import Elastic, elastic, separate
from pliant.learn import Settings, evaluate
from pliant.nets import mlp
from pliant.report import collect, page, write_report
from pliant.report.collect import paired_change, quality
from pliant.report.conditions import measured_on
from pliant.search import Axis, Front, Point, SearchSettings, search


def digits() -> Dataset:
    return load("digits", limit=120)


def reads(data: Dataset) -> int:
    return int(vars(data)["test_reads"])


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 8, 8), 10, hidden=(12,))


@pytest.fixture(scope="module")
def net() -> Elastic:
    return elastic(fresh(), digits().example())


@pytest.fixture
def run(net: Elastic, tmp_path: Path) -> Path:
    settings = SearchSettings(progress=False)
    search(net, digits(), objectives=("accuracy", "latency"), n_trials=3, run=tmp_path / "run", settings=settings)
    net.save(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_the_test_split_is_read_once_for_one_front(net: Elastic, run: Path) -> None:
    data, again, other = digits(), digits(), digits()
    first = collect(run, net, dataset=data)
    assert reads(data) == 1
    assert collect(run, net, dataset=again).front == first.front
    assert reads(again) == 0
    front = Front.load(run)
    Front(front.trials[:2], front.objectives).save(run)
    collect(run, net, dataset=other)
    assert reads(other) == 1


def test_figures_per_class_agree_with_the_whole(net: Elastic, run: Path) -> None:
    contents = collect(run, net, dataset=digits())
    whole = contents.largest
    assert whole is not None
    assert whole.test is not None
    assert sum(contents.class_counts) == digits().sizes["test"]
    weights = np.asarray(contents.class_counts) / sum(contents.class_counts)
    assert float(weights @ np.asarray(whole.classes)) == pytest.approx(whole.test)
    for point in contents.front:
        assert point.test is not None
        assert point.values["parameters"] == net.cost(point.config).parameters
        if point.change:
            changes = np.asarray([change for change, _ in point.change])
            assert float(weights @ changes) == pytest.approx(point.total[0])
            assert point.test - whole.test == pytest.approx(point.total[0])


def test_conditions_name_the_machine_the_versions_and_the_split(net: Elastic, run: Path) -> None:
    conditions = dict(collect(run, net, dataset=digits()).conditions)
    assert "1 thread(s)" in conditions["hardware"]
    assert f"torch {torch.__version__.split('+')[0]}" in conditions["versions"]
    assert "120 train" in conditions["data"]
    device = measured_on(run)
    assert device is not None
    assert device["name"] == "cpu"


def test_the_page_is_written_whole(net: Elastic, run: Path) -> None:
    path = write_report(run, net, data=digits(), model="my net")
    assert path == run / "report.html"
    assert "my net" in path.read_text()


def test_a_torn_last_line_of_metrics_is_left_out_and_another_is_named(net: Elastic, run: Path) -> None:
    line = json.dumps({"step": 1, "epoch": 0, "loss": 1.0, "lr": 0.1, "seconds": 1.0, "cpu_seconds": 1.0})
    (run / "metrics.jsonl").write_text(f"{line}\n{line[:20]}")
    assert len(collect(run, net, dataset=digits()).metrics) == 1
    (run / "metrics.jsonl").write_text(f"{line[:20]}\n{line}\n")
    with pytest.raises(PliantError, match="line 1 is no JSON"):
        collect(run, net, dataset=digits())


def test_without_a_search_it_says_what_to_do(net: Elastic, tmp_path: Path) -> None:
    with pytest.raises(PliantError, match=r"no search yet.*pliant search"):
        write_report(tmp_path, net, data=digits())
    assert list(tmp_path.iterdir()) == []


def test_a_paired_change_and_its_error_by_hand() -> None:
    mine, theirs = np.array([1, 0, 0, 1.0]), np.array([1, 1, 1, 0.0])
    mean, error = paired_change(mine, theirs)
    assert mean == pytest.approx(-0.25)
    assert error == pytest.approx(np.sqrt((0.75 - 0.0625) / 4))
    assert paired_change(mine[:0], theirs[:0]) == (0.0, 0.0)


def test_quality_never_falls() -> None:
    from pliant.core import Config

    generator = torch.Generator().manual_seed(0)
    values = torch.rand(20, 2, generator=generator, dtype=torch.float64).tolist()
    points = [Point(Config({"w": i}), {"accuracy": a, "latency_ms": b}) for i, (a, b) in enumerate(values)]
    found = quality(Front(points, (Axis("accuracy", maximise=True), Axis("latency_ms"))))
    assert len(found) == 20
    assert all(a <= b for a, b in pairwise(found))
    assert 0 < found[-1] <= 1.001


def test_gradients_of_the_whole_network_and_of_the_front_are_compared(net: Elastic, run: Path) -> None:
    contents = collect(run, net, dataset=digits())
    names = [name for name, _ in contents.conflict]
    assert names[0] == "whole network"
    assert set(names[1:]) <= {"smallest", *(point.name for point in contents.front)}
    cosines = np.asarray([row for _, row in contents.conflict])
    assert cosines.shape == (len(names), len(names))
    np.testing.assert_allclose(np.diag(cosines), 1.0)
    assert (np.abs(cosines) <= 1 + 1e-9).all()
    assert collect(run, net, dataset=digits()).conflict == contents.conflict


def test_networks_trained_alone_stand_beside_the_family(net: Elastic, run: Path) -> None:
    data, settings = digits(), Settings(progress=False, lr=1e-2, batch_size=16)
    assert collect(run, net, dataset=digits()).separate == ()
    configs = [net.space.largest(), net.space.smallest()]
    found = separate(net, digits(), configs=configs, fresh=fresh(), epochs=20, run=run, settings=settings)
    contents = collect(run, net, dataset=data)
    assert reads(data) == 1  # there are new networks to measure, and they are measured together
    whole, small = contents.separate
    assert contents.largest is not None
    assert (whole.name, whole.family) == ("whole network", contents.largest.test)
    test = digits().test
    for one, trained in zip((whole, small), found, strict=True):
        assert one.alone == pytest.approx(evaluate(trained.module, test))
        assert one.change[0] == pytest.approx(one.family - one.alone)
        assert one.change[1] is not None
        assert (one.epochs, one.cpu_seconds) == (20, trained.cpu_seconds)
    assert whole.alone > whole.family + 0.2  # the family here was never trained
    text = page(contents)
    assert "<h2>Against separately trained networks" in text
    assert "trained alone from a fresh start for 20 epochs" in text
    again = digits()
    assert collect(run, net, dataset=again).separate == contents.separate
    assert reads(again) == 0
