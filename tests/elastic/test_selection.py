"""Freely chosen units."""

import pytest
import torch
from torch import nn

from pliant import nets
from pliant.core import Selection, call, tensors_of
from pliant.elastic import elastic
from pliant.testing import zoo_subjects

NAMES = ("mlp", "resnet", "vit", "gpt", "lstm", "densenet", "shufflenet", "gpt2", "llama")


def test_chosen_neurons_by_hand() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 8), nn.Linear(8, 3)
    net = elastic(nn.Sequential(first, nn.ReLU(), second), torch.randn(2, 5))
    kept = [1, 4, 6]
    small = net.extract(Selection({"width:0": kept}))
    states = small.state_dict()
    assert torch.equal(states["0.weight"], first.weight[kept])
    assert torch.equal(states["0.bias"], first.bias[kept])
    assert torch.equal(states["2.weight"], second.weight[:, kept])
    x = torch.randn(7, 5)
    hidden = torch.relu(first(x))[:, kept]
    torch.testing.assert_close(small(x), hidden @ second.weight[:, kept].t() + second.bias)


@pytest.mark.parametrize("name", NAMES)
def test_first_units_are_those_of_a_config(name: str) -> None:
    subject = zoo_subjects()[name]
    net, example = elastic(subject.make(), subject.example(), min_size=1).eval(), subject.example()
    config = net.space.uniform(0.5)
    chosen = Selection({n: v if isinstance(v, bool) else range(v) for n, v in config.items()})
    ours, theirs = net.extract(chosen), net.extract(config)
    for one, other in zip(tensors_of(call(ours, example)), tensors_of(call(theirs, example)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_last_units_are_the_first_of_the_reversed_network(name: str) -> None:
    subject = zoo_subjects()[name]
    net, example = elastic(subject.make(), subject.example(), min_size=1).eval(), subject.example()
    groups = {group.name: group.units for group in net.graph.groups}
    chosen = Selection({n: range(units - max(units // 2, 1), units) for n, units in groups.items()})
    last = net.extract(chosen)
    net.sort_units({n: [float(i) for i in range(units)] for n, units in groups.items()})  # last ones first
    first = net.extract(Selection({n: range(max(units // 2, 1)) for n, units in groups.items()}))
    for one, other in zip(tensors_of(call(last, example)), tensors_of(call(first, example)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_spans_and_frozen_parameters() -> None:
    model = nets.resnet((1, 8, 8), 5, blocks=(2, 1), width=8)
    model.conv1.weight.requires_grad_(False)
    net = elastic(model, torch.randn(2, 1, 8, 8))
    small = net.extract(Selection({"depth:stages.0.1": False, "width:conv1": [0, 7]}))
    parameters = dict(small.named_parameters())
    assert not any(name.startswith("stages.0.1") for name in parameters)
    assert parameters["conv1.weight"].shape[0] == 2
    assert not parameters["conv1.weight"].requires_grad


def test_names_and_units_that_do_not_exist_are_named() -> None:
    net = elastic(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 5))
    with pytest.raises(ValueError, match="width:0 has the units 0 to 7, got 8"):
        net.extract(Selection({"width:0": [8]}))
    with pytest.raises(ValueError, match="no width 'width:9' in Sequential"):
        net.extract(Selection({"width:9": [0]}))
    with pytest.raises(ValueError, match="no depth 'width:0' in Sequential"):
        net.extract(Selection({"width:0": True}))
