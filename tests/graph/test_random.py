"""Random networks, random sub-networks: reordering changes nothing, and a slice is the network cut by hand."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

from pliant.core import seeded
from pliant.elastic import Elastic, elastic
from pliant.elastic.order import PermutationCheck, reorderings
from pliant.graph.labels import IntArray
from tests.graph.random_nets import Plan, Stack, example, narrow, plans
from tests.graph.spec import check_spec

SHARDS, EACH = 40, 50
"""The slow suite: 2,000 networks, a shard a test (`-k "shard and 7"` runs one; `--last-failed` what is left)."""


def _make(kind: str, plan: Plan) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Stack(kind, plan)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p) * 0.2)
    return net


def _kept(net: Elastic, counts: IntArray) -> dict[str, dict[int, Tensor]]:
    """The indices of every parameter and buffer that stay."""
    axes = net.graph.state_axes
    return {
        name: {axis: torch.from_numpy(np.flatnonzero(content.kept(counts))) for axis, content in of.items()}
        for name, of in axes.items()
        if of
    }


def _holds(kind: str, plan: Plan) -> None:
    model, x = _make(kind, plan), example(kind)
    net = elastic(model, x, min_size=1, check=False)  # the analysis alone is on trial
    assert PermutationCheck(net.graph).error(reorderings(net.graph)) <= 1e-9
    with torch.no_grad():
        for training in (False, True):
            wanted = copy.deepcopy(model).train(training)(x)
            torch.testing.assert_close(net.train(training)(x), wanted, rtol=1e-5, atol=1e-6)
    generator = seeded(0, "random")
    for config in (net.space.smallest(), net.sample(generator), net.sample(generator)):
        counts = net.graph.counts({i: int(config.get(g.name, g.units)) for i, g in enumerate(net.graph.groups)})
        check_spec(net.graph, counts)
        whole_model = copy.deepcopy(model)
        whole_model.load_state_dict(net.state_dict(), strict=False)  # statistics have moved
        small, kept = net.extract(config), _kept(net, counts)
        assert sum(p.numel() for p in small.parameters()) == net.cost(config).parameters
        whole = all(bool(config.get(name, True)) for name in net.graph.span_names)
        # code on smaller parameters says the same, unless numbers of its own are to shrink (`x[:, [2, 0, 1]]`)
        cut = narrow(whole_model, kept) if whole and set(kept) <= set(whole_model.state_dict()) else None
        for training in (False, True):
            net.train(training)
            small.train(training)
            with net.using(config), torch.no_grad():
                sliced = net(x)
                torch.testing.assert_close(sliced, small(x), rtol=1e-5, atol=1e-6)
                if cut is not None:
                    torch.testing.assert_close(sliced, copy.deepcopy(cut).train(training)(x), rtol=1e-4, atol=1e-5)


QUICK = settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None, derandomize=True,
                 phases=[Phase.generate], deadline=None)  # fmt: skip
LONG = settings(QUICK, max_examples=EACH, derandomize=False)


@QUICK
@given(plans("image"))
def test_random_image_networks(plan: Plan) -> None:
    _holds("image", plan)


@QUICK
@given(plans("tokens"))
def test_random_token_networks(plan: Plan) -> None:
    _holds("tokens", plan)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_shard_of_random_networks(shard: int) -> None:
    kind = ("image", "tokens")[shard % 2]

    @LONG
    @seed(shard)
    @given(plans(kind))
    def hold(plan: Plan) -> None:
        _holds(kind, plan)

    hold()
