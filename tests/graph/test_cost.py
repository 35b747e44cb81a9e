"""Costs of small networks, counted by hand: two FLOPs for each multiply-accumulate, for one sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pliant.elastic import elastic
from tests.graph.tiny import Row, Tiny, floats, linear, weight

X, IMAGE, SEQUENCE = floats(6), floats(3, 6, 6), floats(5, 6)


def _heads() -> dict[str, nn.Module]:
    return {"q": linear(6, 8), "k": linear(6, 8), "v": linear(6, 8), "o": linear(8, 3)}


ROWS = [
    (Row("linear", lambda s, x: s.c(torch.relu(s.a(x))), X, [], lambda: {"a": linear(6, 8), "c": linear(8, 3)}),
     6 * 8 + 8 * 3, 6 * 8 + 8 + 8 * 3 + 3),
    # 4 x 4 places, 9 taps
    (Row("conv", lambda s, x: s.a(x), IMAGE, [], lambda: {"a": nn.Conv2d(3, 8, 3)}), 16 * 8 * 3 * 9, 8 * 3 * 9 + 8),
    # 3 x 3 places; each output channel reads one input channel
    (Row("depthwise", lambda s, x: s.a(x), IMAGE, [],
         lambda: {"a": nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, bias=False)}), 9 * 6 * 1 * 9, 6 * 9),
    # every one of the 6 x 6 inputs meets 2 x 2 taps
    (Row("transposed", lambda s, x: s.a(x), IMAGE, [], lambda: {"a": nn.ConvTranspose2d(3, 8, 2, stride=2)}),
     36 * 3 * 8 * 4, 3 * 8 * 4 + 8),
    (Row("einsum", lambda s, x: torch.einsum("bti,io,jo->btj", x, s.w, s.v), SEQUENCE, [],
         lambda: {"w": weight(6, 8), "v": weight(3, 8)}), 5 * 6 * 8 + 5 * 8 * 3, 48 + 24),
    # three projections of 5 tokens, scores and their product with v over 5 x 5 pairs, one projection
    (Row("attention", lambda s, x: s.o(F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x))), SEQUENCE, [], _heads),
     3 * 5 * 6 * 8 + 2 * 5 * 5 * 8 + 5 * 8 * 3, 3 * (48 + 8) + 24 + 3),
    # 5 steps, 4 gates, each from 6 inputs and 7 states
    (Row("lstm", lambda s, x: s.a(x)[0], SEQUENCE, [], lambda: {"a": nn.LSTM(6, 7, batch_first=True)}),
     5 * 4 * 7 * (6 + 7), 4 * 7 * (6 + 7) + 2 * 4 * 7),
    # the second layer reads both directions
    (Row("bigru", lambda s, x: s.a(x)[0], SEQUENCE, [],
         lambda: {"a": nn.GRU(6, 7, 2, batch_first=True, bidirectional=True)}),
     5 * 2 * 3 * 7 * ((6 + 7) + (14 + 7)), 2 * 3 * 7 * ((6 + 7 + 2) + (14 + 7 + 2))),
    # looking up and adding cost nothing
    (Row("embedding", lambda s, x: s.a(x) + s.p, torch.randint(9, (3, 5)), [],
         lambda: {"a": nn.Embedding(9, 8), "p": weight(5, 8)}), 0, 72 + 40),
    # shared weights are run twice and held once
    (Row("shared", lambda s, x: s.a(torch.relu(s.a(x))), X, [], lambda: {"a": linear(6, 6)}), 2 * 36, 42),
    # without a rule torch's own count is taken
    (Row("cell", lambda s, x: s.a(x)[0], X, [], lambda: {"a": nn.LSTMCell(6, 7)}), 4 * 7 * 13, 4 * 7 * 15),
]  # fmt: skip


@pytest.mark.parametrize(("row", "macs", "parameters"), ROWS, ids=[row.name for row, _, _ in ROWS])
def test_cost_of_the_whole(row: Row, macs: int, parameters: int) -> None:
    cost = elastic(row.subject().make(), row.x).cost({})
    assert (cost.flops, cost.parameters, cost.bytes) == (2 * macs, parameters, 4 * parameters)


def test_cost_of_parts() -> None:
    parts = {"a": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(8, 8, 3, padding=1, groups=8), "c": nn.Conv2d(8, 8, 1)}
    net = elastic(
        Tiny(lambda s, x: s.o(s.c(s.d(s.a(x))).mean((2, 3))), {**parts, "o": linear(8, 3)}), IMAGE, min_size=1
    )
    first, second = (knob.name for knob in net.space)
    for n, m in ((8, 8), (2, 8), (8, 4), (4, 2)):
        cost = net.cost({first: n, second: m})
        macs = 36 * n * 3 * 9 + 36 * n * 9 + 36 * n * m + m * 3
        assert cost.flops == 2 * macs
        assert cost.parameters == n * 28 + n * 10 + (n * m + m) + (3 * m + 3)


def test_cost_of_skipped_depth() -> None:
    parts = {"a": linear(6, 8), "b": linear(8, 6), "c": linear(6, 3)}
    net = elastic(Tiny(lambda s, x: s.c(x + s.b(torch.relu(s.a(x)))), parts), X)
    (span,) = net.graph.span_names
    assert net.cost({span: False}).flops == 2 * 6 * 3
    assert net.cost({span: False}).parameters == 21
    assert net.cost({span: True}).flops == 2 * (6 * 3 + 2 * 48)


def test_double_precision_takes_twice_the_bytes() -> None:
    net = elastic(Tiny(lambda s, x: s.a(x), {"a": linear(6, 3).double()}), X.double())
    assert net.cost({}).bytes == 8 * 21
