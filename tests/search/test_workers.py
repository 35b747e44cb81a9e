"""Trials measured by several processes, and by Ray."""

import os
import pickle
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pliant
from pliant.core import Config, PliantError, Space
from pliant.data import Dataset
from pliant.search import Front, Nsga2, Objective, Ridge, SearchSettings, read_history, search
from pliant.search.measurements import Measurements
from pliant.search.workers import DEATHS, Processes, _packed, _unpacked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
TWO = SearchSettings(batch_size=16, calibration_batches=2, proposer=Ridge(initial=4, draws=4), workers=2)


def logged(log: Path) -> Callable[[nn.Module, Config], float]:
    def width(module: nn.Module, config: Config) -> float:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {config.to_json()}\n")
        time.sleep(0.02)
        return 8.0 - float(config["width:first"])

    return width


def test_processes_share_the_work_and_the_database(net: Any, data: Dataset, tmp_path: Path) -> None:
    log = tmp_path / "log"
    objectives = ("accuracy", Objective("width", logged(log)))
    front = search(net, data, objectives=objectives, n_trials=6, run=tmp_path / "run", settings=TWO)
    assert len(front.trials) == 6
    lines = log.read_text().splitlines()
    assert len({line.split()[0] for line in lines} - {str(os.getpid())}) == 2
    assert len(lines) == 6
    base = Measurements(tmp_path / "run" / "measurements.sqlite")
    assert len(base) == 12
    base.close()
    assert search(net, data, objectives=objectives, n_trials=6, run=tmp_path / "run", settings=TWO) == front
    # one process goes on where two were
    alone = search(net, data, objectives=objectives, n_trials=6, run=tmp_path / "run", settings=replace(TWO, workers=1))
    assert alone == front
    assert len(log.read_text().splitlines()) == 6


def test_processes_find_the_same_front_whoever_is_first(
    net: Any, wide: tuple[Space, Callable[[Mapping[str, int]], tuple[float, float]]], tmp_path: Path
) -> None:
    net.space, values = wide

    def slow(module: nn.Module, config: Config) -> float:
        time.sleep(0.03 * (os.getpid() % 2))
        return -values(config)[0]

    settings = replace(TWO, proposer=Nsga2(population=6))
    objectives = (Objective("loss", slow), Objective("time", lambda module, config: values(config)[1]))
    calm = search(net, objectives=objectives, n_trials=16, settings=settings)
    for n_trials in (5, 9, 16):
        front = search(net, objectives=objectives, n_trials=n_trials, run=tmp_path, settings=settings)
    assert front == calm


def test_failures_in_processes_are_named(net: Any) -> None:
    def broken(module: nn.Module, config: Config) -> float:
        raise RuntimeError("out of luck")

    with pytest.raises(PliantError, match=r"objective broken raised for .*RuntimeError: out of luck") as caught:
        search(net, objectives=(broken,), n_trials=4, settings=TWO)
    assert "in broken" in caught.value.__notes__[0]


def test_a_killed_worker_is_replaced(net: Any, tmp_path: Path) -> None:
    def once(module: nn.Module, config: Config) -> float:
        mark = tmp_path / str(config["width:first"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(config["width:first"])

    front = search(net, objectives=(once, "flops"), n_trials=6, settings=TWO)
    assert len(front.trials) == 6


def test_a_sub_network_that_kills_its_workers_fails(net: Any, tmp_path: Path) -> None:
    def deadly(module: nn.Module, config: Config) -> float:
        if config["width:first"] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(config["width:first"])

    settings = replace(TWO, on_failure="skip")
    front = search(net, objectives=(deadly, "flops"), n_trials=6, run=tmp_path, settings=settings)
    assert {point.config["width:first"] for point in front.trials} == {2, 8}
    problems = [outcome.problem for outcome in read_history(tmp_path) if outcome.status == "failed"]
    assert len(problems) == 2
    assert all(f"died {DEATHS} times" in problem for problem in problems)


def test_no_process_is_left() -> None:
    pool = Processes(lambda: lambda job: {"pid": os.getpid()}, 2)
    for number in range(4):
        pool.submit(number, {})
    pids = {pool.take(number)["pid"] for number in (3, 0, 2, 1)}
    assert pids <= set(pool.pids())
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


DRIVER = """
import sys, time
sys.path.insert(0, {folder!r})
from conftest import Net, wide_space, wide_values
from pliant.search import Objective, Ridge, SearchSettings, search

def quality(module, config):
    open({log!r}, "a").write("begin " + config.to_json() + "\\n")
    time.sleep(0.1)
    return wide_values(config)[0]

def seconds(module, config):
    open({log!r}, "a").write("end " + config.to_json() + "\\n")
    return wide_values(config)[1]

objectives = (Objective("quality", quality, maximise=True), Objective("time", seconds))
settings = SearchSettings(proposer=Ridge(initial=8, draws=4), workers=2)
search(Net(wide_space()), objectives=objectives, n_trials=14, run={run!r}, settings=settings)
"""


def test_a_killed_driver_loses_nothing_that_was_measured(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    code = DRIVER.format(folder=str(Path(__file__).parent), log=str(log), run=str(run))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=env)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("begin") < 6):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    size = -1
    while size != log.stat().st_size:  # orphans end what they measure, keep it and go
        size = log.stat().st_size
        time.sleep(1.5)
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
    assert len(Front.load(run).trials) == 14
    ended = Counter(line for line in log.read_text().splitlines() if line.startswith("end"))
    assert set(ended.values()) == {1}
    assert len(ended) == 14
    begun = Counter(line for line in log.read_text().splitlines() if line.startswith("begin"))
    assert set(begun.values()) == {1}  # what was being measured at the kill was measured to its end


def test_ray_is_asked_for_by_name(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PliantError, match=r'searching on Ray needs Ray. pip install "pliant\[scale\]"'):
        search(net, objectives=("flops",), settings=replace(TWO, workers="ray"))


class Reference(tuple[Any, ...]):
    """A job that is not done; no two are equal."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class PretendRay(types.ModuleType):
    """As much of Ray as is used, in this process: jobs run when they are asked for, the last one first."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.log: list[str] = []
        self.exceptions = types.SimpleNamespace(RayError=ConnectionError)
        self.util = types.SimpleNamespace(serialization=types.ModuleType("ray.util.serialization"))
        self.lose = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: Any) -> None:
        self.log.append("init")

    def shutdown(self) -> None:
        self.log.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, function: Any) -> Any:
        made = types.SimpleNamespace(remote=lambda *arguments: Reference((function, arguments)))
        return types.SimpleNamespace(options=lambda **settings: made)

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: Any) -> Any:
        self.log.append("get")
        if self.log.count("get") == self.lose:
            raise ConnectionError("lost")
        function, arguments = reference
        return function(*arguments)

    def cancel(self, reference: Any, force: bool) -> None:
        self.log.append("cancel")


def pretend(monkeypatch: pytest.MonkeyPatch) -> PretendRay:
    ray = PretendRay()
    for name, module in (("ray", ray), ("ray.util", ray.util), ("ray.util.serialization", ray.util.serialization)):
        monkeypatch.setitem(sys.modules, name, module)
    return ray


def test_the_same_search_on_a_cluster(net: Any, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pretend(monkeypatch)
    objectives = ("accuracy", "flops")
    here = search(net, data, objectives=objectives, n_trials=6, settings=TWO)
    there = search(net, data, objectives=objectives, n_trials=6, run=tmp_path, settings=replace(TWO, workers="ray"))
    assert there == here
    assert ray.log == ["init", *["get"] * 6, "shutdown"]
    base = Measurements(tmp_path / "measurements.sqlite")
    assert len(base) == 12  # the figures came back with the outcomes
    base.close()
    before = len(net.extracted)
    other = replace(TWO, workers="ray", proposer=Ridge(initial=5, draws=4))
    search(net, data, objectives=objectives, n_trials=6, run=tmp_path, settings=other)
    assert len(net.extracted) == before  # another search, but every figure is known


def test_what_ray_loses_has_failed(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pretend(monkeypatch)
    ray.lose = 3
    with pytest.raises(PliantError, match="Ray lost this sub-network"):
        search(net, objectives=("flops",), settings=replace(TWO, workers="ray"))
    assert "cancel" in ray.log


def test_what_is_done_on_a_cluster_is_kept_before_it_is_its_turn(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pretend(monkeypatch)
    ray.lose = 2  # the second of two jobs comes first; then this process is lost, so to say
    with pytest.raises(PliantError, match="Ray lost this sub-network"):
        search(net, objectives=("flops",), n_trials=6, run=tmp_path, settings=replace(TWO, workers="ray"))
    base = Measurements(tmp_path / "measurements.sqlite")
    assert len(base) == 1
    base.close()


def test_a_family_travels_as_its_files(tmp_path: Path) -> None:
    family = pliant.elastic(pliant.nets.mlp((1, 8, 8), 10, hidden=(8,)), torch.zeros(2, 1, 8, 8))
    there = _unpacked(pickle.loads(pickle.dumps(_packed(family))))
    assert there.space == family.space
    config, x = family.space.smallest(), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(there.extract(config)(x), family.extract(config)(x), rtol=0, atol=0)


@pytest.mark.slow
def test_killed_workers_of_a_real_ray_lose_no_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    data = pliant.data.load("digits", limit=200)
    family = pliant.elastic(pliant.nets.mlp((1, 8, 8), 10, hidden=(64, 64)), data.example())

    def once(module: nn.Module, config: Config) -> float:
        mark = tmp_path / f"mark-{config['width:body.0']}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (tmp_path / "log").open("a") as file:
            file.write(f"{config.to_json()}\n")
        return float(config["width:body.0"])

    objectives = ("accuracy", Objective("once", once))
    search(family, data, objectives=objectives, n_trials=8, run=tmp_path / "run", settings=replace(TWO, workers="ray"))
    assert {outcome.status for outcome in read_history(tmp_path / "run")} == {"finished"}
    finished = Counter((tmp_path / "log").read_text().splitlines())
    assert len(finished) == 8
    assert set(finished.values()) == {1}
    assert len(list(tmp_path.glob("mark-*"))) > 1  # so often was a worker killed
