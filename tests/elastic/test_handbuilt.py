"""A sub-network is what an expert would build by hand: a narrower module of the same class, filled by index code."""

from functools import cache

import pytest
import torch
from torch import nn

from pliant import nets
from pliant.core import Config, PliantError
from pliant.elastic import Elastic, elastic
from tests.elastic.handbuilt import PAIRS, Pair


@cache
def _family(name: str) -> tuple[Elastic, nn.Module, Config]:
    """The family of the wide network, the narrow module, and the config that is to give it."""
    pair = PAIRS[name]
    wide, narrow = pair.make()
    choices = {f"{prefix}*": (count, 1.0) for prefix, count in pair.kept.items()}
    net = elastic(wide, pair.example(), min_size=1, choices=choices)
    config = {group.name: _count(pair, group.name) for group in net.graph.groups}
    return net, narrow, net.space.validate(config)


def _count(pair: Pair, name: str) -> int:
    return pair.kept[max((prefix for prefix in pair.kept if name.startswith(prefix)), key=len)]


def _fresh(name: str) -> tuple[Elastic, nn.Module, Config]:
    net, narrow, config = _family(name)
    PAIRS[name].fill(narrow, net)
    net.zero_grad()
    narrow.zero_grad()
    return net, narrow, config


@pytest.mark.parametrize("name", PAIRS)
def test_in_evaluation(name: str) -> None:
    net, narrow, config = _fresh(name)
    x = PAIRS[name].example()
    with net.using(config):
        torch.testing.assert_close(net.eval()(x), narrow.eval()(x), rtol=1e-6, atol=1e-6)
    small = net.extract(config).eval()
    torch.testing.assert_close(small(x), narrow(x), rtol=1e-6, atol=1e-6)
    assert set(narrow.state_dict()) - {"tokens.weight"} <= set(small.state_dict()) <= set(narrow.state_dict())
    for key, tensor in small.state_dict().items():
        assert torch.equal(tensor, narrow.state_dict()[key]), key


@pytest.mark.parametrize("name", PAIRS)
def test_in_training(name: str) -> None:
    net, narrow, config = _fresh(name)
    pair, x = PAIRS[name], PAIRS[name].example()
    net.train()
    narrow.train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    for step in range(2):
        torch.manual_seed(step)
        with net.using(config):
            ours = net(x)
        torch.manual_seed(step)
        theirs = narrow(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        ours.square().mean().backward()
        theirs.square().mean().backward()
    grads = {key: p.grad for key, p in net.named_parameters()}
    for key, p in narrow.named_parameters():
        key = "head.weight" if key == "tokens.weight" else key  # one tensor
        grad = grads[key]
        assert grad is not None
        assert p.grad is not None
        torch.testing.assert_close(pair.cut(key, grad), p.grad, rtol=1e-5, atol=1e-6, msg=key)
        assert torch.count_nonzero(grad) == torch.count_nonzero(pair.cut(key, grad)), key
    for key, buffer in narrow.named_buffers():
        whole = net.state_dict()[key]
        torch.testing.assert_close(pair.cut(key, whole), buffer, rtol=1e-6, atol=1e-6, msg=key)
        changed = torch.count_nonzero(whole != before[key])
        assert changed == torch.count_nonzero(pair.cut(key, whole) != pair.cut(key, before[key])), key
    net.load_state_dict(before)


@pytest.mark.parametrize("name", PAIRS)
def test_cost_is_that_of_the_narrow_module(name: str) -> None:
    net, narrow, config = _fresh(name)
    assert net.cost(config).parameters == sum(p.numel() for p in narrow.parameters())
    assert net.cost(config) == elastic(narrow, PAIRS[name].example(), check=False).cost({})


@pytest.mark.parametrize("name", PAIRS)
def test_into_fills_a_module_of_the_users_own(name: str) -> None:
    net, narrow, config = _fresh(name)
    empty = PAIRS[name].narrow()
    filled = net.extract(config, into=empty)
    assert filled is empty
    assert empty.training
    for key, tensor in empty.state_dict().items():
        assert torch.equal(tensor, narrow.state_dict()[key]), key


def test_into_refuses_other_sizes_and_other_functions() -> None:
    net, _, config = _fresh("mlp")
    with pytest.raises(PliantError, match=r"into does not fit the sub-network \(.*size mismatch") as caught:
        net.extract(config, into=PAIRS["mlp"].wide())
    assert "\n" not in str(caught.value)
    other = nets.mlp((12,), 5, hidden=(5, 7), activation="tanh").eval()
    with pytest.raises(PliantError, match="into computes something else than the sub-network"):
        net.extract(config, into=other)
    assert not other.training
