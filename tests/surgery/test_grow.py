"""Growing: wider and deeper networks that compute what the small one did, and can learn more."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import surgery
from pliant.core import PliantError
from pliant.elastic import to_module
from pliant.graph import Graph, trace


def gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max() / second.detach().abs().max())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 8), nn.ReLU6(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=seeded())


@pytest.fixture(scope="module")
def graph(net: nn.Module, x: Tensor) -> Graph:
    return trace(net, x)


def test_widen_draws_the_copies(net: nn.Module, graph: Graph, x: Tensor) -> None:
    units = {"width:0": 7, "width:3": 12, "width:6": 8}
    wide = surgery.widen(graph, units, generator=seeded())
    assert {group.name: group.units for group in wide.groups} == units
    for training in (False, True):
        assert gap(to_module(wide).train(training)(x), copy.deepcopy(net).train(training)(x)) < 1e-6
    doubled = wide.states["3.weight"]
    assert torch.equal(doubled[:6], doubled[6:]), "a multiple copies all equally often"
    same, other = (surgery.widen(graph, units, generator=seeded(seed)) for seed in (0, 4))
    assert all(torch.equal(same.states[name], wide.states[name]) for name in wide.states)
    assert not torch.equal(other.states["0.weight"], wide.states["0.weight"])
    noisy = surgery.widen(graph, {"width:3": 12}, generator=seeded(), noise=0.01)
    assert 0 < gap(to_module(noisy).eval()(x), net.eval()(x)) < 0.1
    with pytest.raises(ValueError, match="has 4 units, cannot widen it to 3"):
        surgery.widen(graph, {"width:0": 3}, generator=seeded())


@pytest.mark.parametrize(("place", "state"), [("2", "2_deeper.layer.weight"), ("4", "4_deeper.layer.weight"),
                                              ("7", "7_deeper.layer.weight")])  # fmt: skip
def test_deepen_puts_an_identity_behind_an_activation(net: nn.Module, graph: Graph, x: Tensor, place: str,
                                                      state: str) -> None:  # fmt: skip
    deep = surgery.deepen(graph, [place])
    assert gap(to_module(deep).eval()(x), net.eval()(x)) < 1e-6
    new = deep.states[state]
    assert new.shape == ((8, 8) if place == "7" else (new.shape[0], new.shape[0], 3, 3))
    module: Any = to_module(deep)
    module(x).square().sum().backward()
    assert float(module.get_parameter(state).grad.abs().max()) > 0
    assert len(deep.groups) == len(graph.groups) + 1, "the new layer's units bend, too"


def test_both_at_once(net: nn.Module, graph: Graph, x: Tensor) -> None:
    deep = surgery.deepen(graph, ["4", "7"])
    grown = surgery.widen(deep, {group.name: 2 * group.units for group in deep.groups}, generator=seeded())
    assert gap(to_module(grown).eval()(x), net.eval()(x)) < 1e-6
    assert sum(t.numel() for t in grown.states.values()) > 3 * sum(t.numel() for t in graph.states.values())


def test_no_identity_where_none_survives(graph: Graph) -> None:
    with pytest.raises(PliantError, match="changes nothing the second time"):
        surgery.deepen(graph, ["3"])
    with pytest.raises(PliantError, match="changes nothing the second time"):
        surgery.deepen(trace(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(2, 3)), ["1"])
    with pytest.raises(ValueError, match="'99' is no span"):
        surgery.deepen(graph, ["99"])


def test_what_was_added_learns(net: nn.Module, graph: Graph, x: Tensor) -> None:
    wide = surgery.widen(graph, {"width:6": 16}, generator=seeded(), noise=0.05)
    module = to_module(wide).train()
    target = torch.randn(5, 3, generator=seeded(1))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = (module(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    rows = module.get_parameter("6.weight").detach()
    assert not torch.allclose(rows[:8], rows[8:], atol=1e-3)
