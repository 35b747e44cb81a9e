"""The compiled function: one for every sub-network, and nothing of a skipped span runs."""

import linecache
import traceback
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import seeded
from pliant.elastic import Elastic, elastic
from pliant.elastic.runner import Runner
from pliant.graph.graph import trace

_ran: list[int] = []
"""How many rows the operator below has seen, call by call."""


@torch.library.custom_op("pliant_runner_tests::noted", mutates_args=())
def noted(x: Tensor) -> Tensor:
    """A copy; that it ran is written down."""
    _ran.append(len(x))
    return x.clone()


@noted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


noted.register_autograd(lambda ctx, grad: grad)


class Branch(nn.Module):
    """Linear layers around an operator that notes its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(noted(self.fc1(x).relu())))


class Residual(nn.Module):
    """Three skippable branches."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return cast(Tensor, self.head(x))


X = torch.randn(5, 6, generator=seeded(0, "runner"))


@pytest.fixture
def residual() -> Elastic:
    torch.manual_seed(0)
    return elastic(Residual(), X, verbose=False)


def calls(net: nn.Module, x: Tensor) -> int:
    _ran.clear()
    net(x)
    assert all(rows == len(x) for rows in _ran)
    return len(_ran)


@pytest.mark.parametrize("training", [False, True])
def test_skipped_spans_do_not_run(residual: Elastic, training: bool) -> None:
    residual.train(training)
    names = [f"depth:branches.{i}" for i in range(3)]
    assert [knob.name for knob in residual.space if knob.kind == "depth"] == names
    assert calls(residual, X) == 3
    for skipped in ([0], [1], [2], [0, 2], [0, 1, 2]):
        config = {names[i]: False for i in skipped}
        with residual.using(config):
            assert calls(residual, X) == 3 - len(skipped)
        assert calls(residual.extract(config), X) == 3 - len(skipped)
    assert calls(residual, X) == 3


def test_skipped_spans_need_no_weights_and_get_no_gradient(residual: Elastic) -> None:
    residual.train()
    with residual.using({"depth:branches.1": False}):
        residual(X).sum().backward()
    grads = {name for name, parameter in residual.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith("branches.1.") for name in grads)
    assert any(name.startswith("branches.0.") for name in grads)


def test_one_function_serves_every_sub_network(residual: Elastic) -> None:
    runner, function, source = residual._runner, residual._runner._run, residual._runner.source
    generator = seeded(0, "switching")
    for _ in range(20):
        residual.activate(residual.sample(generator))
        residual(X)
        assert residual._runner is runner
        assert runner._run is function
        assert runner.source is source
    assert source.count("if spans[0]:") == 1
    assert source.count(" if spans[0] else ") == 1


class Overwrites(nn.Module):
    """Residual blocks that write over their sums, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = self.act(branch(x) + x)
        return cast(Tensor, self.head(x))


def test_writing_over_a_sum_is_kept_where_its_span_is() -> None:
    torch.manual_seed(0)
    net = elastic(Overwrites(), X, verbose=False)
    source = net._runner.source
    assert source.count(".relu_()") == 2
    assert source.count(".relu_() if spans[") == 2
    for skipped in ([], [0], [1], [0, 1]):
        config = {f"depth:branches.{i}": False for i in skipped}
        small, x = net.extract(config), X.clone()
        with net.using(config):
            out = net(x)
        assert torch.equal(x, X)  # the skipped span's sum is the input itself
        assert torch.equal(out, small(x))
        assert torch.equal(x, X)
        own = [p.requires_grad and p.grad is not None for p in net.parameters()]
        assert not any(own)
        with net.using(config):
            net(x).sum().backward()
        small(x).sum().backward()
        mine = dict(net.named_parameters())
        for name, p in small.named_parameters():
            torch.testing.assert_close(mine[name].grad, p.grad)
        net.zero_grad()


def test_what_a_gradient_needs_is_not_written_over() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc1(x).relu_()
            z = y.tanh().mul_(2.0)  # tanh's gradient reads its result; torch itself would raise
            return cast(Tensor, self.fc2(z + y))

    source = Runner(trace(Needs(), X)).source
    assert ".relu_()" in source
    assert ".mul_(" not in source


def test_the_source_holds_no_sizes_of_a_sub_network() -> None:
    """Two networks that differ in nothing but widths give the same source."""
    x = torch.randn(3, 3, 8, 8)
    wide, narrow = (Runner(trace(nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=w), x)) for w in (8, 4))
    assert wide.source == narrow.source
    vits = [nets.vit((3, 8, 8), 5, patch=4, dim=d, depth=1, heads=h) for d, h in ((16, 4), (8, 2))]
    one, other = (Runner(trace(net, x)) for net in vits)
    assert one.source == other.source
    assert "sizes[0]" in one.source


def test_whole_runs_equal_the_model_with_weights_given_by_hand() -> None:
    torch.manual_seed(0)
    model = nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4).eval()
    x = torch.randn(3, 3, 8, 8)
    graph = trace(model, x)
    runner, counts = Runner(graph), graph.counts({})
    state = dict(model.named_parameters()) | dict(graph.states)
    sizes = [patch.value(counts) for patch in graph.patches]
    with torch.no_grad():
        out = runner([x], [state[name] for name in runner.states], sizes, [True] * len(graph.spans), False)
        assert torch.equal(out, model(x))


def test_the_training_flag_is_live() -> None:
    torch.manual_seed(0)
    net = elastic(nets.mlp((6,), 3, hidden=(32,), dropout=0.5).eval(), X, verbose=False)
    assert torch.equal(net(X), net(X))
    net.train()
    assert not torch.equal(net(X), net(X))
    assert torch.equal(net.eval()(X), net(X))


def test_double_precision_runs_what_says_single() -> None:
    class Says(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.fc(x)).to(torch.float32) + torch.ones(1, dtype=torch.float32)

    graph = trace(Says(), X)
    states = [graph.states[name].detach() for name in Runner(graph).states]
    assert Runner(graph)([X], states, [], [], False).dtype == torch.float32
    doubles = [tensor.double() for tensor in states]
    assert Runner(graph, dtype=torch.float64)([X.double()], doubles, [], [], False).dtype == torch.float64


def test_values_are_freed_once_nobody_needs_them() -> None:
    runner = Runner(trace(nets.mlp((6,), 3, hidden=(8, 8, 8)), X))
    assert runner.source.count("= None") >= 3
    assert "= None" not in runner.source.splitlines()[-1]


def test_a_failure_shows_the_line_that_failed(residual: Elastic) -> None:
    with pytest.raises(RuntimeError) as caught:
        residual(torch.randn(5, 7))
    frames = traceback.extract_tb(caught.value.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith("<pliant graph")]
    assert own
    assert own[-1].line
    assert own[-1].line in linecache.getline(own[-1].filename, own[-1].lineno or 0)
