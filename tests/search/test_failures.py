"""Objectives that raise or give nothing, devices that vanish: named, kept, and the search goes on or stops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pliant.core import Config, PliantError
from pliant.data import Dataset
from pliant.search import Front, Objective, Random, Ridge, SearchSettings, read_history, search
from pliant.search.measurements import Measurements

SKIP = SearchSettings(batch_size=16, calibration_batches=2, proposer=Ridge(initial=3, draws=4), on_failure="skip")
STOP = replace(SKIP, on_failure="stop")


LUCK = RuntimeError("out of luck\nmore")


class Fragile:
    """Fails where the depth is kept, unless it was mended."""

    def __init__(self, broken: Any = LUCK) -> None:
        self.broken = broken
        self.asked: list[Config] = []

    def __call__(self, module: nn.Module, config: Config) -> float:
        self.asked.append(config)
        if config["depth:x"] and self.broken is not None:
            if isinstance(self.broken, Exception):
                raise self.broken
            return float(self.broken)
        return float(config["width:first"])


def objectives(fragile: Fragile) -> tuple[Any, ...]:
    return (Objective("fragile", fragile), "flops")


@pytest.mark.parametrize("broken", [LUCK, float("nan")])
def test_search_skips_what_fails_and_keeps_it(net: Any, broken: Any, tmp_path: Path) -> None:
    fragile = Fragile(broken)
    front = search(net, objectives=objectives(fragile), n_trials=9, run=tmp_path, settings=SKIP)
    assert len(front.trials) == 3  # of six, half fail
    assert not any(point.config["depth:x"] for point in front.trials)
    history = read_history(tmp_path)
    assert [outcome.status for outcome in history].count("failed") == 3
    for outcome in history:
        if outcome.status == "failed":
            assert "fragile" in outcome.problem
            assert ("RuntimeError: out of luck" in outcome.problem) == isinstance(broken, Exception)
            assert "\n" not in outcome.problem
    base = Measurements(tmp_path / "measurements.sqlite")
    assert len(base) == 6 + 3  # flops is not read once the first objective failed
    base.close()
    # neither what finished nor what failed is asked for again
    assert search(net, objectives=objectives(fragile), n_trials=9, run=tmp_path, settings=SKIP) == front
    assert len(fragile.asked) == 6


def test_search_stops_by_name_and_tries_again_later(net: Any, tmp_path: Path) -> None:
    fragile = Fragile()
    with pytest.raises(PliantError, match=r"objective fragile raised for .*: RuntimeError: out of luck") as caught:
        search(net, objectives=objectives(fragile), n_trials=9, run=tmp_path, settings=STOP)
    assert "in __call__" in caught.value.__notes__[0]  # where in the code
    assert all(outcome.status == "finished" for outcome in read_history(tmp_path))
    fragile.broken = None  # the device is back
    front = search(net, objectives=objectives(fragile), n_trials=9, run=tmp_path, settings=STOP)
    assert len(front.trials) == 6
    assert len(fragile.asked) == 7


def test_a_resumed_search_with_failures_asks_what_an_undisturbed_one_would(net: Any, tmp_path: Path) -> None:
    calm = search(net, objectives=objectives(Fragile()), n_trials=5, settings=SKIP)
    for n_trials in (2, 3, 5):
        front = search(net, objectives=objectives(Fragile()), n_trials=n_trials, run=tmp_path, settings=SKIP)
    assert front == calm


def test_a_device_that_vanishes(net: Any, data: Dataset, clock: Any, tmp_path: Path) -> None:
    class Gone(type(clock)):  # type: ignore[misc]
        def compare(self, candidates: Any, inputs: Any, *, batch: int) -> Any:
            if len(self.asked) >= 3:
                raise ConnectionError("no route to device")
            return super().compare(candidates, inputs, batch=batch)

    gone = Gone()
    with pytest.raises(PliantError, match=r"objective latency_ms raised for .*ConnectionError: no route to device"):
        search(net, data, hardware=gone, n_trials=6, run=tmp_path, settings=STOP)
    assert [outcome.status for outcome in read_history(tmp_path)] == ["finished"] * 3


def test_a_device_that_is_gone_at_the_end(net: Any, data: Dataset, clock: Any, tmp_path: Path) -> None:
    class Gone(type(clock)):  # type: ignore[misc]
        def compare(self, candidates: Any, inputs: Any, *, batch: int) -> Any:
            if len(candidates) > 1:
                raise ConnectionError("no route to device")
            return super().compare(candidates, inputs, batch=batch)

    objectives = (Objective("width", lambda m, c: float(c["width:first"]), maximise=True), "latency")
    with pytest.raises(PliantError, match=r"latencies of the front could not be measured again .ConnectionError"):
        search(net, data, objectives=objectives, hardware=Gone(), n_trials=4, run=tmp_path, settings=STOP)
    assert len(read_history(tmp_path)) == 4
    skip = replace(SKIP, proposer=Random())
    with pytest.warns(UserWarning, match="they stay as they were measured one by one"):
        front = search(net, data, objectives=objectives, hardware=Gone(), n_trials=4, settings=skip)
    assert len(front.trials) == 4


def test_a_search_in_which_all_fails(net: Any) -> None:
    nothing = Objective("nothing", lambda module, config: float("nan"))
    with pytest.raises(PliantError, match="none of 4 trials finished; the last: objective nothing is nan"):
        search(net, objectives=(nothing,), n_trials=4, settings=SKIP)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="on_failure is 'stop' or 'skip', got 'ignore'"):
        SearchSettings(on_failure="ignore")
    for workers in (0, "many", True):
        with pytest.raises(ValueError, match="workers are a number of at least 1 or 'ray', got"):
            SearchSettings(workers=workers)


def test_front_of_a_search_with_failures_is_saved(net: Any, tmp_path: Path) -> None:
    front = search(net, objectives=objectives(Fragile()), n_trials=6, run=tmp_path, settings=SKIP)
    assert Front.load(tmp_path) == front
