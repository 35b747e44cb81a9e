"""Matching: the orders that align two networks."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import nets, surgery
from pliant.core import PliantError, seeded
from pliant.data import load
from pliant.elastic import to_module
from pliant.graph import Graph, trace
from pliant.testing.zoo import ZOO


def shuffled(graph: Graph, seed: int = 0) -> tuple[Graph, dict[str, list[int]]]:
    """A graph with its units in a random order, and the orders that bring them back."""
    generator = seeded(seed, "shuffled")
    orders = {group.name: torch.randperm(group.units, generator=generator) for group in graph.groups}
    back = {name: order.argsort().tolist() for name, order in orders.items()}
    return surgery.permute(graph, {name: order.tolist() for name, order in orders.items()}), back


def rows(example: Any, count: int) -> Any:
    if isinstance(example, Mapping):
        return {name: rows(value, count) for name, value in example.items()}
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(count, *example.shape[1:], generator=generator)
    return torch.randint(int(example.max()) + 1, (count, *example.shape[1:]), generator=generator)


SLOW = (
    *("resnet", "densenet", "unet", "mbnet", "shufflenet", "encoder", "convnext", "mixer", "gpt"),
    *("gpt2", "llama", "bert"),
)
SILENT = ("mlp", "unet", "mbnet", "shufflenet")
"""Networks with units that are constant on random inputs: those of them that are alike cannot be told apart."""


@pytest.mark.parametrize("name", ["mlp", "vit", "lstm", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_shuffled_network_is_put_back(name: str) -> None:
    if name not in ZOO:
        pytest.skip("transformers is not installed")
    graph = trace(ZOO[name].make(), ZOO[name].example())
    other, back = shuffled(graph)
    assert surgery.match(graph, other) == back
    matched = surgery.permute(other, back)
    assert all(torch.equal(matched.states[state], tensor) for state, tensor in graph.states.items())
    if name not in SILENT:
        data = [rows(ZOO[name].example(), 32) for _ in range(2)]
        assert surgery.match(graph, other, by="activations", data=data) == back


def trained(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nets.mlp((1, 8, 8), 10, hidden=(64,))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(120):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net


def loss_between(first: Graph, second: Graph, x: Tensor, y: Tensor) -> float:
    """The loss in the middle of the line between two networks."""
    middle = to_module(first)
    with torch.no_grad():
        for name, parameter in middle.named_parameters():
            parameter.copy_((first.states[name] + second.states[name]) / 2)
        return float(F.cross_entropy(middle(x), y))


def test_matched_networks_lie_closer_together() -> None:
    train = load("digits").train
    x, y = train.inputs, train.targets
    first, second = (trace(trained(seed, x, y), x[:4]) for seed in (0, 1))
    ends = max(loss_between(graph, graph, x, y) for graph in (first, second))
    apart = loss_between(first, second, x, y) - ends
    assert apart > 0.2, "two trainings end in places with a barrier between them"
    for options in ({}, {"by": "activations", "data": [x]}):
        aligned = surgery.permute(second, surgery.match(first, second, **options))  # type: ignore[arg-type]
        barrier = loss_between(first, aligned, x, y) - ends
        assert barrier < 0.5 * apart, (options, barrier, apart)


def test_matching_is_deterministic_and_changes_nothing() -> None:
    entry = ZOO["mlp"]
    graph = trace(entry.make(), entry.example())
    other, _ = shuffled(graph, 1)
    before = {name: tensor.clone() for name, tensor in other.states.items()}
    assert surgery.match(graph, other) == surgery.match(graph, other)
    assert all(torch.equal(before[name], other.states[name]) for name in before)


def test_wrong_questions_are_refused() -> None:
    entry = ZOO["mlp"]
    graph = trace(entry.make(), entry.example())
    other = trace(nets.mlp((12,), 5, hidden=(16, 13)), entry.example())
    with pytest.raises(PliantError, match="differ in more than their weights"):
        surgery.match(graph, other)
    with pytest.raises(ValueError, match="got 'guess'"):
        surgery.match(graph, graph, by="guess")
    with pytest.raises(ValueError, match="give batches"):
        surgery.match(graph, graph, by="activations")
    with pytest.raises(PliantError, match="no batches"):
        surgery.match(graph, graph, by="activations", data=[])
    with pytest.raises(PliantError, match="does not fit the network"):
        surgery.match(graph, graph, by="activations", data=[{"nonsense": torch.randn(2, 12)}])
