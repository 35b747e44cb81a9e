"""Operators that compute: what must be tied, read off by hand, and the laws on every network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.graph.tiny import Row, floats, inspect, linear, weight

X, IMAGE, SEQUENCE = floats(6), floats(3, 6, 6), floats(5, 6)
W, H = "width", "heads"
KEY_BIAS = "the bias of a key adds one number to all scores of a query"
SUMMED = "the mean over the queries does not see their order"


def _pair(a: int, b: int) -> dict[str, nn.Module]:
    return {"a": linear(6, a), "c": linear(b, 3)}


def _convs(first: nn.Module, middle: nn.Module, width: int) -> dict[str, nn.Module]:
    return {"a": first, "b": middle, "c": nn.Conv2d(width, 2, 1)}


def _three(s: Any, x: Tensor) -> Tensor:
    out: Tensor = s.c(torch.relu(s.b(torch.relu(s.a(x)))))
    return out


def _attention(repeat: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Four query heads of 3 on two key-value heads."""

    def forward(s: Any, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        q = s.q(x).view(batch, length, 4, 3).transpose(1, 2)
        k = s.k(x).view(batch, length, 2, 3).transpose(1, 2)
        v = s.v(x).view(batch, length, 2, 3).transpose(1, 2)
        out: Tensor = s.o(repeat(q, k, v).transpose(1, 2).reshape(batch, length, 12))
        return out

    return forward


def _heads() -> dict[str, nn.Module]:
    return {"q": linear(6, 12), "k": linear(6, 6), "v": linear(6, 6), "o": linear(12, 3)}


def _repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, dim = k.shape
    k, v = (t[:, :, None].expand(batch, heads, 2, length, dim).reshape(batch, 2 * heads, length, dim) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return torch.softmax(q @ k.mT / 3**0.5, -1) @ v


def _cross(s: Any, x: Tensor) -> Tensor:
    keys = s.b(x)
    out: Tensor = s.c(s.m(s.a(x), keys, keys, need_weights=False)[0])
    return out


def _rnn(s: Any, x: Tensor) -> Tensor:
    out: Tensor = s.c(s.r(s.a(x))[0])
    return out


def _cell(s: Any, x: Tensor) -> Tensor:
    h = torch.tanh(s.i(x[:, 0]))
    state = h, torch.zeros_like(h)
    for t in range(3):
        state = s.r(x[:, t], state)
    out: Tensor = s.c(state[0])
    return out


def _gated_cell(s: Any, x: Tensor) -> Tensor:
    h = torch.tanh(s.i(x[:, 0]))
    for t in range(3):
        h = s.r(s.a(x[:, t]), h)
    out: Tensor = s.c(h)
    return out


def _recurrent(layer: nn.Module, out: int) -> dict[str, nn.Module]:
    return {"a": linear(6, 8), "r": layer, "c": linear(out, 3)}


MASK = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))


def _queries(mask: Callable[[], Tensor | None] = lambda: None, **options: Any) -> Callable[[Any, Tensor], Tensor]:
    """Seven learned queries read the sequence."""

    def forward(s: Any, x: Tensor) -> Tensor:
        q = s.q.expand(x.shape[0], -1, -1)
        out: Tensor = s.c(F.scaled_dot_product_attention(q, s.k(x), s.v(x), mask(), **options).mean(1))
        return out

    return forward


def _parts() -> dict[str, Any]:
    return {"q": weight(1, 7, 8), "k": linear(6, 8), "v": linear(6, 9), "c": linear(9, 3)}


BIAS = {"k.bias[0]": KEY_BIAS}
GQA = [(H, 2)]
ROWS = [
    Row("linear", lambda s, x: s.c(torch.relu(s.a(x))), X, [(W, 8)], lambda: _pair(8, 8)),
    Row("matmul", lambda s, x: torch.relu(x @ s.w) @ s.v, X, [(W, 8)], lambda: {"w": weight(6, 8), "v": weight(8, 3)}),
    Row("einsum", lambda s, x: torch.einsum("bti,io,jo->btj", x, s.w, s.v), SEQUENCE, [(W, 8)],
        lambda: {"w": weight(6, 8), "v": weight(3, 8)}),
    Row("einsum-ellipsis", lambda s, x: torch.einsum("...i,io->...o", s.a(x), s.w), SEQUENCE, [(W, 8)],
        lambda: {"a": linear(6, 8), "w": weight(8, 3)}),
    Row("einsum-broadcast", lambda s, x: torch.einsum("...i,...i->...", s.a(x), s.w)[:, None], X, [(W, 8)],
        lambda: {"a": linear(6, 8), "w": weight(1, 8)}),
    # the diagonal of an outer product is its factors multiplied
    Row("einsum-diagonal", lambda s, x: s.c(torch.einsum("bii->bi", torch.einsum("bi,bj->bij", s.a(x), s.b(x)))), X,
        [(W, 8)], lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("bilinear", lambda s, x: s.c(s.p(s.a(x), s.b(x))), X, [(W, 8), (W, 7), (W, 9)],
        lambda: {**_pair(8, 9), "b": linear(6, 7), "p": nn.Bilinear(8, 7, 9)}),
    Row("addmm", lambda s, x: s.c(torch.addmm(s.m, x, s.w)), X, [(W, 8)],
        lambda: {"m": weight(8), "w": weight(6, 8), "c": linear(8, 3)}),
    Row("weights-shared", lambda s, x: s.c(torch.relu(s.b(torch.relu(s.b(s.a(x)))))), X, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(8, 8)}),
    Row("weights-tied", lambda s, x: torch.relu(x @ s.w.t()) @ s.w, X, [(W, 8)], lambda: {"w": weight(8, 6)}),
    # four groups: a unit is a whole group of every layer
    Row("conv-grouped", _three, IMAGE, [(W, 4)],
        lambda: _convs(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3, groups=4), 24)),
    Row("conv-depthwise", _three, IMAGE, [(W, 6)],
        lambda: _convs(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6), 12)),
    Row("conv-transposed", _three, IMAGE, [(W, 8), (W, 6)],
        lambda: _convs(nn.ConvTranspose2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 6, 2), 6)),
    Row("conv-transposed-grouped", _three, IMAGE, [(W, 4)],
        lambda: _convs(nn.ConvTranspose2d(3, 8, 2), nn.ConvTranspose2d(8, 12, 2, groups=4), 12)),
    Row("conv-padded-by-name", _three, IMAGE, [(W, 8), (W, 5)],
        lambda: _convs(nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular"), 5)),
    Row("batch-norm-of-cat", lambda s, x: s.c(s.n(torch.cat([s.a(x), s.b(x)], 1))), IMAGE, [(W, 4), (W, 5)],
        lambda: {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 5, 3), "n": nn.BatchNorm2d(9), "c": nn.Conv2d(9, 2, 1)}),
    # three normalisation groups; with a single one the channels bend and are normalised together
    Row("group-norm", _three, IMAGE, [(W, 3)], lambda: _convs(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), 12)),
    Row("group-norm-one", _three, IMAGE, [(W, 12)], lambda: _convs(nn.Conv2d(3, 12, 3), nn.GroupNorm(1, 12), 12)),
    Row("group-norm-each", _three, IMAGE, [(W, 12)], lambda: _convs(nn.Conv2d(3, 12, 3), nn.GroupNorm(12, 12), 12),
        silent={"a.bias[0]": "each channel is normalised by itself, which takes its bias away"}),
    Row("instance-norm", _three, IMAGE, [(W, 12)],
        lambda: _convs(nn.Conv2d(3, 12, 3), nn.InstanceNorm2d(12, affine=True, track_running_stats=True), 12)),
    Row("layer-norm-two-axes", lambda s, x: s.c(s.n(s.a(x).view(-1, 4, 5)).flatten(1)), X, [(W, 4)],
        lambda: {**_pair(20, 20), "n": nn.LayerNorm([4, 5])}),
    Row("rms-norm", lambda s, x: s.c(s.n(s.a(x))), X, [(W, 8)], lambda: {**_pair(8, 8), "n": nn.RMSNorm(8)}),
    Row("rms-norm-by-hand", lambda s, x: s.c(s.a(x) * torch.rsqrt(s.a(x).pow(2).mean(-1, keepdim=True)) * s.g), X,
        [(W, 8)], lambda: {**_pair(8, 8), "g": weight(8)}),
    Row("norm-by-hand", lambda s, x: s.c((s.a(x) - s.a(x).mean(1, keepdim=True)) / s.a(x).std(1, keepdim=True)), X,
        [(W, 8)], lambda: _pair(8, 8)),
    Row("prelu", lambda s, x: s.c(s.p(s.a(x))), X, [(W, 8)], lambda: {**_pair(8, 8), "p": nn.PReLU(8)}),
    Row("softmax", lambda s, x: s.c(s.a(x).softmax(-1)), X, [(W, 8)], lambda: _pair(8, 8)),
    Row("where", lambda s, x: s.c(torch.where(s.a(x) > 0, s.a(x), s.b(x))), X, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("masked-fill", lambda s, x: s.c(s.a(x).masked_fill(s.b(x) < 0, 0.0)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("max-of-two", lambda s, x: s.c(torch.max(s.a(x), s.b(x))), X, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("max-over-units", lambda s, x: s.c(s.a(x) / s.a(x).abs().amax(1, keepdim=True)), X, [(W, 8)],
        lambda: _pair(8, 8)),
    Row("weight-norm", lambda s, x: s.c(torch.relu(s.a(x))), X, [(W, 8)],
        lambda: {"a": weight_norm(linear(6, 8)), "c": linear(8, 3)}),
    Row("spectral-norm", lambda s, x: s.c(torch.relu(s.a(x))), X, [(W, 8)],
        lambda: {"a": spectral_norm(linear(6, 8)), "c": linear(8, 3)}),
    # grouped queries: a unit is a key-value head with its two query heads, however the heads are repeated
    Row("gqa-interleave", _attention(_by_hand), SEQUENCE, GQA, _heads, silent=BIAS),
    Row("gqa-expand", _attention(_repeat_kv), SEQUENCE, GQA, _heads, silent=BIAS),
    Row("gqa-flag", _attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)), SEQUENCE, GQA,
        _heads, silent=BIAS),
    Row("gqa-tiled", _attention(lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat(1, 2, 1, 1),
        v.repeat(1, 2, 1, 1))), SEQUENCE, GQA, _heads, silent=BIAS),
    # learned queries bend, and a constant mask with them; an order among them keeps them
    Row("queries", _queries(), SEQUENCE, [(W, 7), (W, 8), (W, 9)], _parts, silent={**BIAS, "q[1]": SUMMED}),
    Row("queries-constant-mask", _queries(lambda: MASK), SEQUENCE, [(W, 7), (W, 8), (W, 9)], _parts,
        silent={**BIAS, "q[1]": SUMMED}),
    Row("queries-mask-by-place", _queries(lambda: torch.ones(7, 5).tril()), SEQUENCE, [(W, 8), (W, 9)], _parts,
        silent=BIAS),
    Row("queries-causal", _queries(is_causal=True), SEQUENCE, [(W, 8), (W, 9)], _parts, silent=BIAS),
    # one projection weight reads queries and keys, so that their features are one width
    Row("mha-cross", _cross, SEQUENCE, [(W, 8), (W, 8), (H, 4)],
        lambda: {"a": linear(6, 8), "b": linear(6, 8), "m": nn.MultiheadAttention(8, 4, batch_first=True),
                 "c": linear(8, 3)}),
    # attention weights that are given out fix the heads
    Row("mha-weights", lambda s, x: s.m(s.a(x), s.a(x), s.a(x), average_attn_weights=False), SEQUENCE, [(W, 8)],
        lambda: {"a": linear(6, 8), "m": nn.MultiheadAttention(8, 4, batch_first=True)}),
    # H is one width over gates, layers and directions
    Row("lstm-stacked", _rnn, SEQUENCE, [(W, 8), (W, 10)],
        lambda: _recurrent(nn.LSTM(8, 10, num_layers=2, batch_first=True), 10)),
    Row("lstm-bidirectional", _rnn, SEQUENCE, [(W, 8), (W, 10)],
        lambda: _recurrent(nn.LSTM(8, 10, bidirectional=True, batch_first=True), 20)),
    Row("gru-no-bias", _rnn, SEQUENCE, [(W, 8), (W, 10)],
        lambda: _recurrent(nn.GRU(8, 10, bias=False, batch_first=True), 10)),
    Row("gru-learned-start", lambda s, x: s.c(s.r(x, s.h.repeat(1, x.shape[0], 1))[0]), SEQUENCE, [(W, 10)],
        lambda: {"r": nn.GRU(6, 10, batch_first=True), "h": weight(1, 1, 10), "c": linear(10, 3)}),
    Row("rnn-last-state", lambda s, x: s.c(s.r(x)[1][-1]), SEQUENCE, [(W, 10)],
        lambda: {"r": nn.RNN(6, 10, num_layers=2, batch_first=True), "c": linear(10, 3)}),
    Row("lstm-projected", _rnn, SEQUENCE, [(W, 8), (W, 7)],
        lambda: _recurrent(nn.LSTM(8, 10, num_layers=2, proj_size=7, batch_first=True), 7)),
    Row("lstm-projected-bidirectional", _rnn, SEQUENCE, [(W, 8), (W, 7)],
        lambda: _recurrent(nn.LSTM(8, 10, proj_size=7, bidirectional=True, bias=False, batch_first=True), 14)),
    Row("lstm-cell", _cell, SEQUENCE, [(W, 8)],
        lambda: {"i": linear(6, 8), "r": nn.LSTMCell(6, 8), "c": linear(8, 3)}),
    Row("gru-cell", _gated_cell, SEQUENCE, [(W, 8), (W, 7)],
        lambda: {"i": linear(6, 8), "a": linear(6, 7), "r": nn.GRUCell(7, 8), "c": linear(8, 3)}),
    Row("rnn-cell", _gated_cell, SEQUENCE, [(W, 8), (W, 7)],
        lambda: {"i": linear(6, 8), "a": linear(6, 7), "r": nn.RNNCell(7, 8, bias=False), "c": linear(8, 3)}),
    Row("embedding-bag", lambda s, x: s.c(s.e(x)), torch.randint(9, (3, 4)), [(W, 8)],
        lambda: {"e": nn.EmbeddingBag(9, 8), "c": linear(8, 3)}),
    Row("embedding", lambda s, x: s.c(s.e(x)), torch.randint(9, (3, 4)), [(W, 8)],
        lambda: {"e": nn.Embedding(9, 8), "c": linear(8, 3)}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_computing_rule(row: Row) -> None:
    inspect(row)
