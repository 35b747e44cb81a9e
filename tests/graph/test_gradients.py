"""Gradients that a network writes itself survive the trace, or are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.elastic import elastic


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(4 * x)
        return grad * 4 * s * (1 - s)


class Scaled(torch.autograd.Function):
    """The newer style, with a second input and a number; the backward is the true derivative."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, factor: float) -> Tensor:
        return x * y * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, ctx.factor = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        return grad * y * ctx.factor, grad * x * ctx.factor, None


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


class Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(-1)


class Net(nn.Module):
    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.middle = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.b(self.middle(self.norm(self.a(x))))
        return logits


def call(function: Any, *args: Any) -> Any:
    return function.apply(*args)


MIDDLES = {
    "surrogate": lambda x: call(Spike, x),
    "reversal": lambda x: call(Reversed, x, 0.5),
    "true": lambda x: call(Scaled, x, torch.tanh(x), 2.0),
    "twice": lambda x: call(Spike, x) + call(Reversed, call(Spike, x - 0.1), 0.3),
}


@pytest.mark.parametrize("name", MIDDLES)
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_equal_the_originals(name: str, training: bool) -> None:
    torch.manual_seed(0)
    net, x = Net(MIDDLES[name]).train(training), torch.randn(5, 6)
    family = elastic(net, x)
    assert [group.units for group in family.graph.groups] == [16]
    ours, theirs = family(x), net(x)
    assert torch.equal(ours, theirs)
    for output in (ours, theirs):
        (output * torch.arange(3.0)).sum().backward()
    for key, parameter in net.named_parameters():
        own = dict(family.named_parameters())[key].grad
        assert parameter.grad is not None
        assert own is not None
        torch.testing.assert_close(own, parameter.grad)
    assert net.a.weight.grad is not None
    assert net.a.weight.grad.abs().sum() > 0


def test_a_smaller_member_keeps_the_surrogate() -> None:
    torch.manual_seed(0)
    family = elastic(Net(MIDDLES["surrogate"]), torch.randn(5, 6))
    small = family.extract(family.space.smallest())
    small(torch.randn(5, 6)).sum().backward()
    assert dict(small.named_parameters())["a.weight"].grad.abs().sum() > 0  # type: ignore[union-attr]


def test_a_backward_that_mixes_entries_is_refused() -> None:
    with pytest.raises(PliantError, match=r"backward of Mixed cannot be kept.*mixes entries.*sub-module"):
        elastic(Net(lambda x: call(Mixed, x)), torch.randn(5, 6))


def test_apply_is_restored() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    with pytest.raises(PliantError):
        elastic(Net(lambda x: call(Mixed, x)), torch.randn(5, 6))
    assert torch.autograd.Function.__dict__["apply"] is before
