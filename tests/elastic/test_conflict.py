"""Gradient conflict between sub-networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pliant.core import Config
from pliant.elastic import elastic
from pliant.elastic.conflict import gradient_conflict

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def test_cosines_are_those_of_gradients_taken_by_hand() -> None:
    first, _, act, _, last = _net()  # type: ignore[misc]
    net = elastic(nn.Sequential(first, act, last), X)  # type: ignore[has-type]
    knob = next(iter(net.space)).name
    whole, half = Config({knob: 8}), Config({knob: 4})
    found = gradient_conflict(net, [(X, Y)], F.cross_entropy, [whole, half])

    one = net.extract(whole)
    F.cross_entropy(one(X), Y).backward()  # type: ignore[no-untyped-call]
    other = net.extract(half)
    F.cross_entropy(other(X), Y).backward()  # type: ignore[no-untyped-call]
    big = [p.grad for p in one.parameters()]
    small = [p.grad for p in other.parameters()]
    assert all(g is not None for g in (*big, *small))
    cut = [b[tuple(slice(0, n) for n in s.shape)] for b, s in zip(big, small, strict=True)]  # type: ignore[index, union-attr]
    left, right = (torch.cat([g.reshape(-1) for g in each]) for each in (cut, small))  # type: ignore[union-attr]
    wanted = float(left @ right / (left.norm() * right.norm()))
    assert float(found[0, 1]) == pytest.approx(wanted, rel=1e-4)
    assert found.diagonal().tolist() == pytest.approx([1.0, 1.0])
    assert torch.equal(found, found.T)


def test_the_family_is_left_as_it_was() -> None:
    net = elastic(_net(), X).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    gradient_conflict(net, [(X, Y), (X, Y)], F.cross_entropy, [net.space.largest(), net.space.smallest()])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_that_helps_one_and_hurts_the_other_is_below_zero() -> None:
    """The narrow network's output is too large, the wide one's too small: the shared weight is pulled both ways."""
    model = nn.Sequential(nn.Linear(1, 8, bias=False), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # type: ignore[operator]
        model[1].weight.copy_(torch.tensor([[3.0] * 4 + [-4.0] * 4]))  # type: ignore[operator]
    net = elastic(model, torch.ones(2, 1))
    knob = next(iter(net.space)).name
    targets = torch.full((2, 1), 4.0)  # narrow: 12, wide: -4
    found = gradient_conflict(net, [(torch.ones(2, 1), targets)], F.mse_loss, [Config({knob: 8}), Config({knob: 4})])
    assert float(found[0, 1]) < -0.9


def test_networks_that_share_no_weight_have_no_cosine() -> None:
    net = elastic(_net(), X)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    last = list(net.parameters())[-1].requires_grad_()
    found = gradient_conflict(net, [(X, Y)], F.cross_entropy, [net.space.largest(), net.space.smallest()])
    assert float(found[0, 1]) > 0  # the last bias alone
    assert last.grad is None
    silent = gradient_conflict(net, [(X, Y)], lambda output, _: 0 * output.sum(), [net.space.largest()])
    assert math.isnan(float(silent[0, 0]))
