"""BatchNorm while ways are looked for: its result is taken to be like its input, but only where it is."""

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.flow import Flow


class Net(nn.Module):
    """A convolution, a norm, a decision."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        """Two ways."""
        x = self.norm(self.conv(x))
        if x.sum() > 0:
            return x * 2
        return x.mean((2, 3))


def flow_of(norm: nn.Module) -> Flow:
    return Flow(Net(norm).eval(), torch.randn(1, 1, 6, 6))


def test_its_tensors_belong_to_the_block_and_its_shape_is_that_of_its_input() -> None:
    norm = nn.BatchNorm2d(4)
    state = flow_of(norm).states[0]
    used = {id(tensor) for tensor in state.constants.values()}
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    assert {id(tensor) for tensor in tensors} <= used
    assert state.edges
    given = torch.randn(1, 1, 6, 6)
    flow = flow_of(norm)
    with flow.still():
        found = flow.outputs(flow.states[0], [given])
    assert any(tensor.shape == (1, 4, 4, 4) for tensor in found)


def test_the_block_computes_with_its_statistics() -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    net = Net(norm).eval()
    flow = Flow(net, torch.randn(1, 1, 6, 6))
    x = torch.randn(1, 1, 6, 6)
    with flow.still(), torch.no_grad():
        found = flow.outputs(flow.states[0], [x])
        wanted = net.norm(net.conv(x))
    assert any(tensor.shape == wanted.shape and torch.allclose(tensor, wanted, atol=1e-6) for tensor in found)


def test_one_that_does_not_fit_its_input_is_not_taken_for_granted() -> None:
    with pytest.raises(RuntimeError, match=r"5 elements|running_mean|should contain"):
        flow_of(nn.BatchNorm2d(5))


def test_one_of_another_precision_is_not_taken_for_granted() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm2d(4).double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.double()) + 0.5
            return out

    flow = flow_of(Doubled())
    kinds = {dtype for state in flow.states for dtype, _ in state.params}
    assert torch.float64 in kinds  # what flows on is what the norm gives, not what went in first


def test_one_that_would_update_its_statistics_is_refused() -> None:
    class Updating(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)

    with pytest.raises(PliantError, match="training mode"):
        flow_of(Updating(4))
