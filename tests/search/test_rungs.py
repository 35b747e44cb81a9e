"""Cheap looks first: only the promising are judged on the whole validation split."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core import Knob, Space, seeded
from pliant.data import Dataset, Split
from pliant.search import Random, Rungs, SearchSettings, read_history, search

SETTINGS = SearchSettings(batch_size=10, calibration_batches=2, proposer=Random(), rungs=Rungs((1, 2), keep=0.4))


@pytest.fixture
def many(net: Any, data: Dataset) -> Dataset:
    net.space = Space([Knob("width:first", (1, 2, 3, 4, 5, 6, 7, 8)), Knob("depth:x", (False, True))])
    inputs = torch.randn(100, 4, generator=seeded(3, "val"))
    return replace(data, val=Split(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()))


def test_the_unpromising_are_stopped(net: Any, many: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    qualities = import_module("pliant.search.qualities")
    evaluate = qualities.evaluate

    def noted(module: nn.Module, split: Split, **more: Any) -> float:
        looked.append(len(split))
        return float(evaluate(module, split, **more))

    monkeypatch.setattr(qualities, "evaluate", noted)
    front = search(net, many, objectives=("accuracy",), n_trials=14, run=tmp_path, settings=SETTINGS)
    history = read_history(tmp_path)
    stopped = [outcome for outcome in history if outcome.status == "stopped"]
    assert len(history) == 14
    assert len(stopped) >= 3
    assert len(front.trials) == 14 - len(stopped)
    assert looked.count(10) == 14
    assert looked.count(100) == len(front.trials)  # the front holds figures of the whole split only
    for outcome in history:
        assert len(outcome.rungs) == (2 if outcome.status == "finished" else len(outcome.rungs))
        if outcome.status == "stopped":
            earlier = [o.rungs[len(outcome.rungs) - 1] for o in history[: history.index(outcome)]
                       if len(o.rungs) >= len(outcome.rungs)]  # fmt: skip
            better = sum(row["accuracy"] > outcome.rungs[-1]["accuracy"] for row in earlier)
            assert better >= 1
    # nothing is looked at twice, and what costs nothing to measure is measured once for all rungs
    before = len(looked)
    assert search(net, many, objectives=("accuracy",), n_trials=14, run=tmp_path, settings=SETTINGS) == front
    assert len(looked) == before


def test_rungs_resume_exactly(net: Any, many: Dataset, tmp_path: Path) -> None:
    objectives = ("accuracy", "flops")
    calm = search(net, many, objectives=objectives, n_trials=12, settings=SETTINGS)
    for n_trials in (3, 7, 12):
        front = search(net, many, objectives=objectives, n_trials=n_trials, run=tmp_path, settings=SETTINGS)
    assert front == calm


def test_rungs_need_a_validation_objective(net: Any) -> None:
    with pytest.raises(ValueError, match="rungs look at parts of the validation split"):
        search(net, objectives=("flops",), settings=SETTINGS)
    for wrong in ((), (0, 2), (4, 2)):
        with pytest.raises(ValueError, match="rungs are growing numbers of batches"):
            Rungs(wrong)
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]"):
        Rungs((1,), keep=0)
