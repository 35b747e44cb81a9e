import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core import Config, Knob, PliantError, Space, seeded
from pliant.data import Dataset
from pliant.export import hardware
from pliant.search import Front, Objective, Random, Ridge, SearchSettings, search
from pliant.search.measurements import Measurements

QUICK = SearchSettings(batch_size=16, calibration_batches=2, proposer=Ridge(initial=3, draws=4))


def configs(front: Front) -> list[Config]:
    return [point.config for point in front.trials]


def test_search_measures_the_whole_of_a_small_space_once(net: Any, clock: Any, data: Dataset) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    front = search(net, data, hardware=clock, n_trials=99, settings=QUICK)
    assert sorted(map(Config.to_json, configs(front))) == sorted(map(Config.to_json, net.space.configs()))
    assert [axis.key for axis in front.objectives] == ["accuracy", "latency_ms"]
    assert vars(data)["test_reads"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert front.best("latency").values["latency_ms"] == 18.0


def test_search_of_a_single_config(net: Any, clock: Any, data: Dataset) -> None:
    for space in (Space([]), Space([Knob("width:first", (4,))])):
        net.space = space
        front = search(net, data, hardware=clock, settings=QUICK)
        assert [point.config for point in front] == [space.largest()]
        assert front.hypervolume() == 0


def test_search_is_deterministic_and_stops_at_n_trials(net: Any, data: Dataset) -> None:
    objectives = ("accuracy", "parameters")
    first = search(net, data, objectives=objectives, n_trials=4, settings=QUICK, seed=5)
    assert len(first.trials) == 4
    assert search(net, data, objectives=objectives, n_trials=4, settings=QUICK, seed=5) == first
    assert first.trials == search(net, data, objectives=objectives, n_trials=6, settings=QUICK, seed=5).trials[:4]


def test_search_needs_no_data_for_costs(net: Any) -> None:
    front = search(net, objectives=("flops", lambda_free_width), n_trials=6, settings=QUICK)
    assert front.best("flops").values == {"flops": 28.0, "lambda_free_width": 6.0}
    with pytest.raises(ValueError, match="'accuracy' needs data"):
        search(net)


def lambda_free_width(module: nn.Module, config: Config) -> float:
    return 8.0 - float(config["width:first"])


def test_search_takes_whatever_a_dataset_can_be_made_of(net: Any) -> None:
    inputs = torch.randn(60, 4, generator=seeded(0, "inputs"))
    front = search(
        net, (inputs, (inputs[:, 0] > 0).long()), objectives=("accuracy", "flops"), n_trials=2, settings=QUICK
    )
    assert all(0 <= point.values["accuracy"] <= 1 for point in front)


def test_search_asks_val_and_train_only(net: Any, data: Dataset) -> None:
    limited = SearchSettings(batch_size=16, calibration_batches=1, val_limit=7)
    front = search(net, data, objectives=("accuracy", "flops"), n_trials=3, settings=limited)
    assert vars(data)["test_reads"] == 0
    for point in front.trials:
        assert point.values["accuracy"] * 7 == pytest.approx(round(point.values["accuracy"] * 7))
    assert {len(batches) for batches in net.calibrations} == {1}


def test_search_measures_nothing_twice(net: Any, clock: Any, data: Dataset, tmp_path: Path) -> None:
    first = search(net, data, hardware=clock, n_trials=4, run=tmp_path, settings=QUICK)
    extracted, asked = len(net.extracted), len(clock.asked)
    assert extracted == 4 + len(first)
    assert search(net, data, hardware=clock, n_trials=4, run=tmp_path, settings=QUICK) == first
    assert (len(net.extracted), len(clock.asked)) == (extracted, asked)
    # one objective more: another study, yet only the new objective is measured
    front = search(net, data, objectives=("accuracy", "flops"), n_trials=4, run=tmp_path, settings=QUICK)
    known = set(configs(first))
    assert len(net.extracted) - extracted == len(set(configs(front)) - known)
    assert Front.load(tmp_path) == front


def test_search_goes_on_in_its_folder(net: Any, clock: Any, data: Dataset, tmp_path: Path) -> None:
    whole = search(net, data, hardware=clock, n_trials=6, settings=QUICK)
    search(net, data, hardware=clock, n_trials=3, run=tmp_path, settings=QUICK)
    assert search(net, data, hardware=clock, n_trials=6, run=tmp_path, settings=QUICK) == whole
    other = search(net, data, hardware=clock, n_trials=3, run=tmp_path, settings=QUICK, seed=1)
    assert len(other.trials) == 3


def test_new_weights_new_data_and_new_hardware_are_measured_anew(
    net: Any, clock: Any, data: Dataset, tmp_path: Path
) -> None:
    def run(**changes: Any) -> Front:
        given = {"hardware": clock, "n_trials": 2, "run": tmp_path, "settings": QUICK, **changes}
        return search(net, given.pop("data", data), **given)

    def fresh(**changes: Any) -> int:
        before = len(net.extracted)
        run(**changes)
        return len(net.extracted) - before

    assert fresh() > 0
    assert fresh() == 0
    assert fresh(data=replace(data, val=data.train, test=data.val)) > 0
    assert fresh(hardware=type(clock)(threads=2)) > 0
    net.first = net.first + 1
    assert fresh() > 0


def test_search_refuses_the_folder_of_another_network(net: Any, data: Dataset, tmp_path: Path) -> None:
    search(net, data, objectives=("flops",), n_trials=1, run=tmp_path, settings=QUICK)
    net.space = Space([Knob("width:first", (4, 8))])
    with pytest.raises(PliantError, match="another space"):
        search(net, data, objectives=("flops",), n_trials=1, run=tmp_path, settings=QUICK)


def test_search_refuses_bad_arguments(net: Any, data: Dataset) -> None:
    for n_trials in (0, 2.5, True):
        with pytest.raises(ValueError, match="n_trials must be a whole number of at least 1"):
            search(net, data, n_trials=n_trials)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="val_limit must be at least 1, got 0"):
        SearchSettings(val_limit=0)
    with pytest.raises(PliantError, match="objective broken is inf"):
        search(net, objectives=(Objective("broken", lambda module, config: float("inf")),), settings=QUICK)
    repeating = type("Same", (), {"propose": lambda self, space, *_, **__: space.largest()})()
    with pytest.raises(PliantError, match="Same: the proposer repeated"):
        search(net, objectives=("flops",), settings=SearchSettings(proposer=repeating))


def test_front_latencies_are_measured_side_by_side(net: Any, clock: Any, data: Dataset) -> None:
    clock.drift = 0.2  # each measurement finds the machine slower: figures taken apart cannot be compared
    front = search(net, data, objectives=("parameters", "latency"), hardware=clock, n_trials=6, settings=QUICK)
    together = [names for names in clock.asked if len(names) > 1]
    assert {point.config.to_json() for point in front} <= set(together[-1])
    for point in front:
        width = int(point.config["width:first"])
        assert point.values["latency_ms"] == pytest.approx(9 * width * (1 + 0.2 * len(clock.asked)))
        assert point.spread == {"latency_ms": 0.5}


def test_latencies_within_the_noise_are_flagged(net: Any, data: Dataset, clock: Any) -> None:
    settings, objectives = QUICK, (Objective("width", lambda m, c: float(c["width:first"]), maximise=True), "latency")
    clear = search(net, data, objectives=objectives, hardware=clock, n_trials=6, settings=settings)
    # both depths give the same network here, so those pairs cannot be told apart
    assert all(point.ties == ("latency_ms",) for point in clear)
    net.space = Space([Knob("width:first", (2, 4, 8))])
    clear = search(net, data, objectives=objectives, hardware=clock, settings=settings)
    assert [point.ties for point in clear] == [(), (), ()]
    noisy = search(net, data, objectives=objectives, hardware=type(clock)(noise=1.0), settings=settings)
    assert [point.ties for point in noisy] == [("latency_ms",)] * 3


def test_search_on_this_machine(net: Any, data: Dataset) -> None:
    front = search(net, data, hardware=hardware("cpu"), n_trials=2, settings=QUICK)
    assert all(0 < point.values["latency_ms"] < 1000 for point in front.trials)


def test_progress_is_one_line_per_trial(net: Any, data: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    loud = SearchSettings(proposer=Random(), progress=True)
    search(net, data, objectives=("accuracy", "flops"), n_trials=3, settings=loud)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["1/3", "2/3", "3/3"]
    assert "front" in err
    assert "best accuracy" in err
    search(net, data, objectives=("accuracy", "flops"), n_trials=3, settings=QUICK)
    assert capfd.readouterr() == ("", "")


def test_search_beats_chance_on_a_known_space(
    net: Any, wide: tuple[Space, Callable[[Mapping[str, int]], Sequence[float]]]
) -> None:
    net.space, values = wide
    objectives = (
        Objective("quality", lambda module, config: values(config)[0], maximise=True),
        Objective("time", lambda module, config: values(config)[1]),
    )
    every = [values(config) for config in net.space.configs()]
    corner = {"quality": min(q for q, _ in every), "time": max(t for _, t in every)}
    shares = {}
    for proposer in (Ridge(), Random()):
        front = search(net, objectives=objectives, n_trials=60, settings=SearchSettings(proposer=proposer))
        shares[type(proposer)] = front.hypervolume(corner)
    assert shares[Ridge] > shares[Random]


KILLED = """
import os, sys, time
sys.path.insert(0, {folder!r})
from conftest import Net, wide_space, wide_values
from pliant.search import Objective, Ridge, SearchSettings, search

def quality(module, config):
    open({log!r}, "a").write("q " + config.to_json() + "\\n")
    return wide_values(config)[0]

def seconds(module, config):
    open({log!r}, "a").write("t " + config.to_json() + "\\n")
    time.sleep(float(os.environ["PAUSE"]))  # no part of the code: that would make it another objective
    return wide_values(config)[1]

objectives = (Objective("quality", quality, maximise=True), Objective("time", seconds))
settings = SearchSettings(proposer=Ridge(initial=8, draws=4))
search(Net(wide_space()), objectives=objectives, n_trials=12, run={run!r}, settings=settings)
"""


def start(run: Path, log: Path, pause: float) -> "subprocess.Popen[bytes]":
    folder = str(Path(__file__).parent)
    code = KILLED.format(folder=folder, log=str(log), run=str(run))
    env = {**os.environ, "PAUSE": str(pause), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([sys.executable, "-c", code], env=env)


def kill_after(process: "subprocess.Popen[bytes]", log: Path, lines: int) -> None:
    """Kill once so many figures were begun, in the middle of one."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            break
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_search_survives_being_killed(tmp_path: Path) -> None:
    calm, log = tmp_path / "calm.log", tmp_path / "killed.log"
    assert start(tmp_path / "calm", calm, 0.0).wait() == 0
    for lines in (5, 15):
        kill_after(start(tmp_path / "run", log, 0.1), log, lines)
    assert not (tmp_path / "run" / "front.json").exists()
    assert start(tmp_path / "run", log, 0.0).wait() == 0
    assert Front.load(tmp_path / "run") == Front.load(tmp_path / "calm")
    assert len(Front.load(tmp_path / "run").trials) == 12
    # what was finished is never asked again; only the figure that was being measured at each kill is
    asked = log.read_text().splitlines()
    again = [line for line in set(asked) if asked.count(line) > 1]
    assert len(asked) == len(calm.read_text().splitlines()) + len(again)
    assert len(again) <= 2
    assert set(asked) == set(calm.read_text().splitlines())
    base = Measurements(tmp_path / "run" / "measurements.sqlite")
    assert len(base) == 24
    base.close()
