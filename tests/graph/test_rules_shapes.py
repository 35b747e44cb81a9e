"""Operators that move entries: what must be tied, read off by hand, and the laws on every network."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.tiny import Row, floats, inspect, linear, weight

X, IMAGE, SEQUENCE = floats(6), floats(3, 6, 6), floats(5, 6)
W = "width"


def _gates(s: Any, x: Tensor) -> Tensor:
    i, f, g = s.a(x).chunk(3, -1)
    out: Tensor = s.c(torch.sigmoid(i) * torch.tanh(g) + f)
    return out


def _split(s: Any, x: Tensor) -> Tensor:
    first, second = s.a(x).split([5, 7], 1)
    out: Tensor = s.b(first) + s.c(second)
    return out


def _tensor_split(s: Any, x: Tensor) -> Tensor:
    first, second = torch.tensor_split(s.a(x), 2, 1)
    out: Tensor = s.b(first) + s.c(second)
    return out


def _shared_scores(s: Any, x: Tensor) -> Tensor:
    heads = s.a(x).unflatten(2, (4, 3)).transpose(1, 2).flatten(0, 1)
    places = torch.arange(x.shape[1]).flip(0)[None, :, None].expand(heads.shape[0], -1, 3)
    turned = heads.gather(1, places).view(-1, 4, x.shape[1], 3)
    out: Tensor = s.c(turned.transpose(1, 2).flatten(2))
    return out


def _pair(a: int, b: int) -> dict[str, nn.Module]:
    return {"a": linear(6, a), "c": linear(b, 3)}


def _conv(a: int, b: int) -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, a, 3), "c": nn.Conv2d(b, 2, 1)}


ROWS = [
    # parts keep their own units
    Row("cat", lambda s, x: s.c(torch.cat([torch.relu(s.a(x)), s.b(x)], 1)), X, [(W, 8), (W, 5)],
        lambda: {**_pair(8, 13), "b": linear(6, 5)}),
    # the parts are tied on the axes that are not joined; learned tokens beside the sequence bend too
    Row("cat-other-axis", lambda s, x: s.c(torch.cat([s.a(x), s.t.expand(x.shape[0], -1, -1)], 1).amax(1)), SEQUENCE,
        [(W, 8), (W, 2)], lambda: {**_pair(8, 8), "t": weight(1, 2, 8)}),
    Row("stack-inner", lambda s, x: s.c(torch.stack([s.a(x), s.b(x)], 2).flatten(1)), X, [(W, 4)],
        lambda: {**_pair(4, 8), "b": linear(6, 4)}),
    Row("stack-outer", lambda s, x: s.c(torch.stack([s.a(x), s.b(x)], 1).flatten(1)), X, [(W, 4)],
        lambda: {**_pair(4, 8), "b": linear(6, 4)}),
    Row("split", _split, X, [(W, 5), (W, 7)], lambda: {"a": linear(6, 12), "b": linear(5, 3), "c": linear(7, 3)}),
    Row("tensor-split", _tensor_split, X, [(W, 6), (W, 6)],
        lambda: {"a": linear(6, 12), "b": linear(6, 3), "c": linear(6, 3)}),
    # parts that are multiplied and added are one width
    Row("chunk-gates", _gates, X, [(W, 8)], lambda: _pair(24, 8)),
    Row("glu", lambda s, x: s.c(F.glu(s.a(x))), X, [(W, 6)], lambda: _pair(12, 6)),
    # one value and one gate: they are no two units of a kind
    Row("glu-single", lambda s, x: s.c(F.glu(s.a(x))), X, [], lambda: _pair(2, 1)),
    Row("chunk-single", lambda s, x: s.c(torch.mul(*s.a(x).chunk(2, 1))), X, [], lambda: _pair(2, 1)),
    # 12 entries: the first 8 in both slices' complement, entry 8 in both, the last 3 in the second alone
    Row("slices-negative", lambda s, x: s.c(s.a(x)[:, :-3]) + s.d(s.a(x)[:, -4:]), X, [(W, 8), (W, 3)],
        lambda: {**_pair(12, 9), "d": linear(4, 3)}),
    Row("slice-clamped", lambda s, x: s.c(s.a(x)[:, 4:100]) + s.d(s.a(x)[:, -100:4]), X, [(W, 4), (W, 8)],
        lambda: {**_pair(12, 8), "d": linear(4, 3)}),
    # blocks of entries between two steps go together
    Row("slice-step", lambda s, x: s.c(s.a(x)[:, ::2]), X, [(W, 6)], lambda: _pair(12, 6)),
    Row("slice-step-gates", lambda s, x: s.c(s.a(x)[..., ::2].sigmoid() * s.a(x)[..., 1::2]), SEQUENCE, [(W, 6)],
        lambda: _pair(12, 6)),
    Row("slice-step-tail", lambda s, x: s.c(s.a(x)[:, ::5]), X, [], lambda: _pair(12, 3)),
    Row("slice-step-later", lambda s, x: s.c(s.a(x)[:, 2::2]), X, [], lambda: _pair(12, 5)),
    Row("slice-step-short", lambda s, x: s.c(s.a(x)[:, :8:2]), X, [], lambda: _pair(12, 4)),
    # fewer repeats than axes; the axis repeated from one entry follows the other operand
    Row("tile-last", lambda s, x: s.c(s.a(x).tile((2,))), SEQUENCE, [(W, 8)], lambda: _pair(8, 16)),
    Row("tile-grown", lambda s, x: s.c(s.b(x).tile((8,)) * s.a(x)), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(6, 1)}),
    # the first of two grids varies along rows, and is as wide as the other vector is long
    Row("meshgrid", lambda s, x: s.c(x @ torch.meshgrid(s.t, s.b.bias, indexing="ij")[0] + s.b(x)), X, [(W, 8)],
        lambda: {"b": linear(6, 8), "c": linear(8, 3), "t": weight(6)}),
    Row("meshgrid-xy", lambda s, x: s.c(x @ torch.meshgrid(s.a.bias, s.t, indexing="xy")[0] * s.a(x)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "t": weight(6)}),
    # a batch of heads, which a score without heads is repeated for
    Row("expand-heads", _shared_scores, SEQUENCE, [(W, 4)], lambda: _pair(12, 12)),
    Row("narrow", lambda s, x: s.c(s.a(x).narrow(1, 3, 6)), X, [(W, 3), (W, 6), (W, 3)], lambda: _pair(12, 6),
        silent={f"a.{n}[0]": "the network throws these entries away" for n in ("weight", "bias")}),
    # the chosen entry stays, those before and after it bend, and its place moves with those before
    Row("select", lambda s, x: s.c(s.a(x)) + s.a(x)[:, -5, None], X, [(W, 7), (W, 4)], lambda: _pair(12, 12)),
    Row("select-other-axis", lambda s, x: s.c(s.a(x)[:, -1]), SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    Row("unbind", lambda s, x: s.c(sum(s.a(x).view(-1, 4, 2).unbind(2))), X, [(W, 4)], lambda: _pair(8, 4)),
    # 4 blocks of 3: a block is a unit, whichever of the sizes is left open
    Row("view-open", lambda s, x: s.c(s.a(x).view(x.shape[0], -1, 3).sum(2)), X, [(W, 4)], lambda: _pair(12, 4)),
    Row("view-open-batch", lambda s, x: s.c(s.a(x).view(-1, 4, 3).sum(2)), X, [(W, 4)], lambda: _pair(12, 4)),
    Row("unflatten", lambda s, x: s.c(s.a(x).unflatten(1, (4, 3)).amax(2)), X, [(W, 4)], lambda: _pair(12, 4)),
    # a unit is an entry of the result, with both that it is the larger of
    Row("maxout", lambda s, x: s.c(s.a(x).view(-1, 4, 2).max(2).values), X, [(W, 4)], lambda: _pair(8, 4)),
    Row("flatten", lambda s, x: s.c(s.a(x).flatten(1)), IMAGE, [(W, 4)],
        lambda: {"a": nn.Conv2d(3, 4, 5), "c": linear(16, 3)}),
    Row("generator", lambda s, x: s.c(torch.relu(F.pad(s.a(x).view(-1, 8, 2, 2), (1, 1, 1, 1)))), X, [(W, 8)],
        lambda: {"a": linear(6, 32), "c": nn.Conv2d(8, 2, 3)}),
    Row("expand", lambda s, x: s.c(s.w.expand(x.shape[0], 8) * s.a(x)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "w": weight(1, 8)}),
    Row("expand-flattened", lambda s, x: s.c(s.a(x)[:, :, None].expand(-1, -1, 4).reshape(-1, 32)), X, [(W, 8)],
        lambda: _pair(8, 32)),
    Row("expand-as", lambda s, x: s.c(F.normalize(s.a(x), dim=1)), X, [(W, 8)], lambda: _pair(8, 8)),
    Row("repeat-interleave", lambda s, x: s.c(s.a(x).repeat_interleave(2, 1)), X, [(W, 8)], lambda: _pair(8, 16)),
    Row("repeat", lambda s, x: s.c(s.a(x).repeat(1, 2)), X, [(W, 8)], lambda: _pair(8, 16)),
    # flipped alone the units only lie the other way round; added to itself, unit i is tied to unit n - i
    Row("flip", lambda s, x: s.c(s.a(x).flip(1)), X, [(W, 8)], lambda: _pair(8, 8)),
    Row("flip-added", lambda s, x: s.c(s.a(x) * s.a(x).flip(1)), X, [(W, 4)], lambda: _pair(8, 8)),
    # what depends on the place of its neighbours cannot bend; along another axis it can
    Row("roll", lambda s, x: s.c(s.a(x).roll(1, 1)), X, [], lambda: _pair(8, 8)),
    Row("roll-other-axis", lambda s, x: s.c(s.a(x).roll(1, 1)), SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    Row("cumsum", lambda s, x: s.c(s.a(x).cumsum(1)), X, [], lambda: _pair(8, 8)),
    Row("sort", lambda s, x: s.c(s.a(x).sort(1).values), X, [], lambda: _pair(8, 8)),
    Row("topk-other-axis", lambda s, x: s.c(s.a(x).topk(2, 1).values.sum(1)), SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    # the places that are listed are a width of their own
    Row("index", lambda s, x: s.c(s.a(x)[:, s.i]), X, [(W, 3)], lambda: {**_pair(8, 3), "i": torch.tensor([3, 1, 0])}),
    Row("index-other-axis", lambda s, x: s.c(s.a(x)[:, s.i]), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), "i": torch.tensor([3, 1, 0])}),
    # zeros beside the units (a shortcut that gets wider) stay
    Row("pad-channels", lambda s, x: s.c(F.pad(s.a(x), (0, 0, 0, 0, 2, 2)) + s.b(x)), IMAGE, [(W, 8)],
        lambda: {**_conv(8, 12), "b": nn.Conv2d(3, 12, 3)}),
    Row("pad-image", lambda s, x: s.c(F.pad(s.a(x), (1, 2, 1, 1))), IMAGE, [(W, 8)], lambda: _conv(8, 8)),
    Row("pad-reflect", lambda s, x: s.c(F.pad(s.a(x), (1, 1, 1, 1), mode="reflect")), IMAGE, [(W, 8)],
        lambda: _conv(8, 8)),
    Row("crop-channels", lambda s, x: s.c(F.pad(s.a(x), (0, 0, 0, 0, -2, -2))), IMAGE, [], lambda: _conv(12, 8)),
    # a unit is what ends in one place: 4 channels of each output channel
    Row("pixel-shuffle", lambda s, x: s.c(F.pixel_shuffle(s.a(x), 2)), IMAGE, [(W, 4)], lambda: _conv(16, 4)),
    Row("pixel-unshuffle", lambda s, x: s.c(F.pixel_unshuffle(s.a(x), 2)), IMAGE, [(W, 4)], lambda: _conv(4, 16)),
    # two groups of 6 are interleaved: one channel of either group is a unit
    Row("channel-shuffle", lambda s, x: s.c(s.n(F.channel_shuffle(s.a(x), 2))), IMAGE, [(W, 6)],
        lambda: {**_conv(12, 12), "n": nn.BatchNorm2d(12)}),
    Row("transposed", lambda s, x: s.c(s.n(s.a(x).transpose(1, 2)).mT), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), "n": nn.BatchNorm1d(8)}),
    Row("interpolate", lambda s, x: s.c(F.interpolate(s.a(x), scale_factor=2.0, mode="bilinear")), IMAGE, [(W, 8)],
        lambda: _conv(8, 8)),
    Row("pool-beside-units", lambda s, x: s.c(F.max_pool2d(s.a(x)[:, None], (2, 1), (2, 1))[:, 0]), SEQUENCE, [(W, 8)],
        lambda: _pair(8, 8)),
    Row("pool-over-units", lambda s, x: s.c(F.avg_pool1d(s.a(x)[:, None], 2)[:, 0]), X, [], lambda: _pair(8, 4)),
    Row("constant-by-place", lambda s, x: s.c(s.a(x) + torch.arange(8.0)), X, [], lambda: _pair(8, 8)),
    Row("zeros", lambda s, x: s.c(s.a(x) + torch.zeros(x.shape[0], 8)), X, [(W, 8)], lambda: _pair(8, 8)),
    Row("output", lambda s, x: s.a(x).view(-1, 2, 4), X, [], lambda: {"a": linear(6, 8)}),
    # this sees memory otherwise than index by index
    Row("as-strided", lambda s, x: s.c(s.a(x).as_strided((3, 4), (8, 2))), X, [], lambda: _pair(8, 4), ("as_strided",)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_shape_rule(row: Row) -> None:
    inspect(row)
