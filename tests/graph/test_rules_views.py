"""Writes through views: the same values, gradients and units as with calls that write nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.elastic import elastic
from pliant.graph import trace
from pliant.graph.ir import is_mutable
from pliant.testing.interpret import interpret
from tests.graph.tiny import Row, Tiny, floats, inspect, linear, weight

X, SEQUENCE = floats(6), floats(5, 6)
W = "width"


def _pair(a: int, b: int) -> dict[str, Any]:
    return {"a": linear(6, a), "c": linear(b, 3)}


def _class_token(s: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 6, s.t.shape[-1])
    y[:, :1] = s.t
    y[:, 1:] = s.a(x)
    out: Tensor = s.c(torch.tanh(y).mean(1))
    return out


def _time_loop(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    y, state = torch.zeros(x.shape[0], 5, 8), torch.zeros_like(h[:, 0])
    for t in range(5):
        state = 0.5 * state + h[:, t]
        y[:, t] = torch.tanh(state)
    out: Tensor = s.c(y.amax(1))
    return out


def _shift(s: Any, x: Tensor) -> Tensor:
    """A temporal shift: the first channels look ahead, the next ones back, the others stay."""
    h = s.a(x)
    y = torch.zeros_like(h)
    y[:, :-1, :3] = h[:, 1:, :3]
    y[:, 1:, 3:5] = h[:, :-1, 3:5]
    y[:, :, 5:] = h[:, :, 5:]
    out: Tensor = s.c(torch.relu(y).mean(1))
    return out


def _read_between(s: Any, x: Tensor) -> Tensor:
    """Views taken before a write, read before and after it."""
    y = s.a(x) * 1.0
    first, whole = y[:, :2], y.transpose(0, 1)
    before = first.sum()
    y[:, 1] += s.b(x).mean(1)
    first.mul_(2.0)
    whole[0].zero_()
    y[:, -1].fill_(0.5)
    out: Tensor = s.c((y + first.sum(1, keepdim=True) + before + whole.transpose(0, 1)).mean(1))
    return out


def _through_axes(s: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 5, 8)
    y.transpose(1, 2).permute(0, 2, 1)[:, 2:4].unsqueeze(1)[:, :, 1] = s.a(x)[:, :1]
    out: Tensor = s.c(y.sum(1))
    return out


def _two_parts(s: Any, x: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], 13)
    y[:, :8] = torch.relu(s.a(x))
    y[:, 8:] = s.b(x)
    out: Tensor = s.c(y)
    return out


def _stepped(s: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 10, 8)
    y[:, ::2] = s.a(x)
    y[:, 1::2] = torch.relu(s.a(x))
    out: Tensor = s.c(y.amax(1))
    return out


def _relative_scores(s: Any, x: Tensor) -> Tensor:
    """Scores are read through a view and then written over, behind a class token, as in MViTv2."""
    q, k, v = s.a(x).unflatten(2, (3, 4, 2)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3)
    n, heads, rest = x.shape[0], scores.shape[1], x.shape[1] - 1
    grid = scores[:, :, 1:, 1:].view(n, heads, rest // 2, 2, rest)
    scores[:, :, 1:, 1:] = (grid + s.r).view(n, heads, rest, rest)
    out: Tensor = s.c((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
    return out


def _frozen_half(s: Any, x: Tensor) -> Tensor:
    """A whole fresh tensor is overwritten while a view of it is alive."""
    y = torch.zeros(x.shape[0], 8)
    row = y[0]
    y.copy_(s.a(x))
    out: Tensor = s.c(y + row)
    return out


ROWS = [
    Row("class-token", _class_token, SEQUENCE, [(W, 8)], lambda: {**_pair(8, 8), "t": weight(1, 1, 8)}),
    Row("time-loop", _time_loop, SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    Row("shift", _shift, SEQUENCE, [(W, 3), (W, 2), (W, 4)], lambda: _pair(9, 9)),
    Row("read-between", _read_between, SEQUENCE, [(W, 8)], lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("through-axes", _through_axes, SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    # the parts are units of their own, as if they were joined
    Row("two-parts", _two_parts, X, [(W, 8), (W, 5)], lambda: {**_pair(8, 13), "b": linear(6, 5)}),
    Row("stepped", _stepped, SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    Row("relative-scores", _relative_scores, SEQUENCE, [("heads", 4)],
        lambda: {"a": linear(6, 24), "c": linear(8, 3), "r": weight(2, 2, 4)}, silent={"a.bias[0]": "keys"}),
    Row("whole-copy", _frozen_half, X, [(W, 8)], lambda: _pair(8, 8)),
    # where torch says it in one call, what is written over has the size of what is written
    Row("slice-scatter", lambda s, x: s.c(torch.slice_scatter(s.a(x), s.b(x), 1, 2, 7)), X, [(W, 2), (W, 5), (W, 2)],
        lambda: {**_pair(9, 9), "b": linear(6, 5)},
        silent={f"a.{n}[0]": "its entries that move with others are overwritten" for n in ("weight", "bias")}),
    Row("select-scatter", lambda s, x: s.c(torch.select_scatter(s.a(x), s.b(x)[:, 0], 1, 2).amax(1)), SEQUENCE,
        [(W, 8)], lambda: {**_pair(8, 8), "b": linear(6, 8)}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_write_through_a_view(row: Row) -> None:
    inspect(row)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_values_and_gradients_are_those_of_the_writes(row: Row) -> None:
    model = row.subject().make()
    graph = trace(model, row.x)
    assert not any(node.kind == "call" and is_mutable(node.target) for node in graph.program)
    torch.testing.assert_close(interpret(graph, row.x), model(row.x), rtol=0, atol=1e-7)
    net = elastic(model, row.x, min_size=1)
    other = copy.deepcopy(model)
    net(row.x).square().sum().backward()
    other(row.x).square().sum().backward()
    mine = dict(net.named_parameters())
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-5, atol=1e-6)


class _Input(nn.Module):
    """Writes into its own input, which the caller sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.c = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.0
        out: Tensor = self.c(torch.relu(self.a(x)))
        return out


class _Statistic(nn.Module):
    """Writes into part of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.seen[0] = h.detach().mean(0)
        out: Tensor = self.c(h + self.seen.sum(0))
        return out


@pytest.mark.parametrize("make", [_Input, _Statistic])
def test_writes_to_inputs_and_state_stay(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(3, 6)
    net, other = elastic(model, x.clone(), min_size=1), copy.deepcopy(model)
    mine, theirs = x.clone(), x.clone()
    for _ in range(2):
        torch.testing.assert_close(net(mine), other(theirs))
    torch.testing.assert_close(mine, theirs)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(net.named_buffers())[name], buffer)


def test_a_view_whose_memory_is_unknown_is_left_alone() -> None:
    """`reshape` may or may not copy: what is written after it may or may not be seen through it."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x) * 1.0
        flat = y.reshape(-1, 8)
        y[:, 0] = 0.0
        out: Tensor = s.c(F.relu(flat)).view(x.shape[0], -1)
        return out

    model = Tiny(forward, _pair(8, 8))
    graph = trace(model, SEQUENCE)
    torch.testing.assert_close(interpret(graph, SEQUENCE), model(SEQUENCE))
    assert any(node.kind == "call" and is_mutable(node.target) for node in graph.program)
