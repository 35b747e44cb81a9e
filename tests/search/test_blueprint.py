"""Architectures that share no weights, searched as a family is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core import Config, Knob, PliantError, Space, repeated
from pliant.data import Dataset
from pliant.search import Blueprint, Random, SearchSettings, read_history, search

QUICK = SearchSettings(batch_size=16, calibration_batches=1, proposer=Random())


def layer(values: dict[str, Any]) -> Any:
    return lambda features: nn.Sequential(
        nn.Linear(features, features), {"relu": nn.ReLU, "tanh": nn.Tanh}[values["act"]]()
    )


def mlp(values: dict[str, Any]) -> nn.Module:
    width = values["width"]
    return nn.Sequential(nn.Linear(4, width), *(made(width) for made in values["layer"]), nn.Linear(width, 3))


SPACE = Space(
    [Knob("width", (4, 8)), repeated("layer", Space([Knob("act", ("relu", "tanh"))], build=layer), n=(0, 2))], build=mlp
)


def test_networks_are_built_and_costed() -> None:
    plan = Blueprint(SPACE, torch.zeros(2, 4))
    config = SPACE.validate({"width": 8, "layer": 1, "layer.0.act": "tanh"})
    module: Any = plan.extract(config)
    assert not module.training
    assert isinstance(module[1][1], nn.Tanh)
    cost = plan.cost(config)
    assert cost.flops == 2 * (4 * 8 + 8 * 8 + 8 * 3)
    assert cost.parameters == 4 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert cost.bytes == 4 * cost.parameters
    again: Any = Blueprint(SPACE, torch.zeros(2, 4)).extract(config)
    other: Any = Blueprint(SPACE, torch.zeros(2, 4), seed=1).extract(config)
    assert torch.equal(again[0].weight, module[0].weight)
    assert not torch.equal(other[0].weight, module[0].weight)


def test_architectures_are_searched(data: Dataset, tmp_path: Path) -> None:
    trained: list[Config] = []

    def train(module: nn.Module, config: Config) -> nn.Module:
        trained.append(config)
        steps = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(30):
            steps.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(data.train.inputs), data.train.targets))
            steps.step()
        return module

    plan = Blueprint(SPACE, torch.zeros(2, 4), train=train)
    objectives = ("accuracy", "flops", "memory")
    front = search(plan, data, objectives=objectives, n_trials=99, run=tmp_path, settings=QUICK)
    assert len(front.trials) == SPACE.size == 14 == len(trained) == len(set(trained))
    assert max(point.values["accuracy"] for point in front) > 0.7
    assert [outcome.config for outcome in read_history(tmp_path)] == [point.config for point in front.trials]
    assert (
        search(plan, data, objectives=("accuracy", "flops", "memory"), n_trials=99, run=tmp_path, settings=QUICK)
        == front
    )
    assert len(trained) == 14


def test_other_trainings_are_other_networks() -> None:
    names = {
        Blueprint(SPACE, torch.zeros(2, 4), train=train).name
        for train in (None, lambda module, config: module, lambda module, config: module.train())
    }
    assert len(names) == 3


def test_blueprints_need_modules() -> None:
    with pytest.raises(ValueError, match="needs a space that builds modules"):
        Blueprint(Space([]), torch.zeros(1, 4))
    with pytest.raises(PliantError, match="the builder gave dict, no module"):
        Blueprint(Space([], build=lambda values: values), torch.zeros(1, 4)).extract(Config({}))
