"""One program from training and evaluation: what training adds is live in training, and gone in evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.elastic import elastic
from pliant.export import to_onnx
from pliant.testing import LAWS, Subject

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class ByBernoulli(nn.Module):
    """Stochastic depth as timm and torchvision write it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(0.7)
        mask.div_(0.7)
        return x * mask


class ByHalf(nn.Module):
    """The same where the share is what an in-place operator takes unless it is told."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(0.5).div_(0.5)


class ByFloor(nn.Module):
    """Stochastic depth as Hugging Face writes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = 0.7 + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        mask.floor_()
        return x.div(0.7) * mask


class Block(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.n, self.a, self.b = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.drop, self.out = drop, nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.out(self.b(F.gelu(self.a(self.n(x))))))
        return out


class Deep(nn.Module):
    def __init__(self, drop: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(6, 12), nn.ModuleList(), nn.Linear(12, 3)
        self.norm = nn.BatchNorm1d(12)
        self.blocks.extend(Block(drop()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(self.norm(x))
        return out


def _made(drop: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Deep(drop)
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.dim() == 1:
                    tensor.add_(torch.rand(tensor.shape) * 0.3)
        return model


@pytest.mark.parametrize("drop", [ByBernoulli, ByHalf, ByFloor])
def test_stochastic_depth_obeys_every_law(drop: Callable[[], nn.Module]) -> None:
    subject = Subject(drop.__name__, lambda: _made(drop), lambda: X)
    for law in LAWS:
        LAWS[law](subject)


@pytest.mark.parametrize("drop", [ByBernoulli, ByHalf, ByFloor])
def test_stochastic_depth_is_live(drop: Callable[[], nn.Module]) -> None:
    net = elastic(_made(drop), X)
    assert net.graph.notes == []
    assert sorted(name.partition(":")[0] for name in net.graph.span_names) == ["depth", "depth"]
    small = net.extract(net.space.largest())
    for each in (net, small):
        each.train()
        torch.manual_seed(3)
        one = each(X)
        assert not torch.equal(one, each(X))
        each.eval()
        state = torch.get_rng_state()
        assert torch.equal(each(X), each(X))
        assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn in evaluation


def test_what_training_adds_is_no_part_of_an_export() -> None:
    small = elastic(_made(ByBernoulli), X).extract({}).eval()
    kinds = {node.op_type for node in to_onnx(small, X).proto.graph.node}
    assert not [kind for kind in kinds if "andom" in kind or "Bernoulli" in kind]


def test_training_that_decides_by_chance_gives_the_evaluation_graph_and_names_the_line() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            for block in self.blocks:
                if self.training and torch.rand([]) < 0.5:
                    continue
                x = x + block(torch.relu(x))
            return self.b(x)

    for training in (False, True):
        net = elastic(LayerDrop().train(training), X)
        (note,) = net.graph.notes
        assert note.startswith("training and evaluation run different operators; the evaluation graph is used in both")
        assert "test_modes.py" in note
        assert "if self.training and torch.rand([]) < 0.5:" in note
        assert len(net.graph.groups) == 1


def test_outputs_of_training_alone_give_the_evaluation_graph() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            y = torch.relu(self.a(x))
            return (self.b(y), self.c(y)) if self.training else self.b(y)

    model = Auxiliary()
    net = elastic(model, X)
    assert len(net.graph.notes) == 1
    assert torch.equal(net.eval()(X), model.eval()(X))


def test_a_graph_that_cannot_be_traced_at_all_is_refused_in_both_modes() -> None:
    class Asserts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            if float(x.detach().sum()) > 100:
                raise RuntimeError("too large")
            return self.a(x)

    with pytest.raises(PliantError, match="this line decides by the values"):
        elastic(Asserts(), X)
