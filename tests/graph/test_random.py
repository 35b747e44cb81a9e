"""Random networks, random sub-networks: reordering changes nothing, and a slice is what is taken out."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from pliant.core import seeded
from pliant.elastic import elastic
from pliant.elastic.order import PermutationCheck, cycles
from tests.graph.random_nets import Plan, Stack, example, plans
from tests.graph.spec import check_spec


def _make(kind: str, plan: Plan) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Stack(kind, plan)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p) * 0.2)
    return net


def _holds(kind: str, plan: Plan) -> None:
    model, x = _make(kind, plan), example(kind)
    net = elastic(model, x, min_size=1, check=False)  # the analysis alone is on trial
    checker, orders = PermutationCheck(net.graph), cycles(net.graph.analysis.units)
    assert checker.error(orders) <= 1e-9
    with torch.no_grad():
        for training in (False, True):
            torch.testing.assert_close(net.train(training)(x), model.train(training)(x), rtol=1e-5, atol=1e-6)
    generator = seeded(0, "random")
    for config in (net.space.smallest(), net.sample(generator), net.sample(generator)):
        check_spec(
            net.graph, net.graph.counts({i: int(config.get(g.name, g.units)) for i, g in enumerate(net.graph.groups)})
        )
        small = net.extract(config)
        assert sum(p.numel() for p in small.parameters()) == net.cost(config).parameters
        for training in (False, True):
            net.train(training)
            small.train(training)
            with net.using(config), torch.no_grad():
                torch.testing.assert_close(net(x), small(x), rtol=1e-5, atol=1e-6)


FAST = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
LONG = settings(FAST, max_examples=150, derandomize=False)


@FAST
@given(plans("image"))
def test_random_image_networks(plan: Plan) -> None:
    _holds("image", plan)


@FAST
@given(plans("tokens"))
def test_random_token_networks(plan: Plan) -> None:
    _holds("tokens", plan)


@pytest.mark.slow
@LONG
@given(plans("image"))
def test_many_random_image_networks(plan: Plan) -> None:
    _holds("image", plan)


@pytest.mark.slow
@LONG
@given(plans("tokens"))
def test_many_random_token_networks(plan: Plan) -> None:
    _holds("tokens", plan)
