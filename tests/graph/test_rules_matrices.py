"""Linear algebra: what must be tied, read off by hand, and the laws on every network."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.by_hand import check_by_hand
from tests.graph.tiny import Row, floats, inspect, linear, weight

X, IMAGE, SEQUENCE = floats(6), floats(3, 6, 6), floats(5, 6)
W = "width"
OUTS: dict[str, Any] = {"a.weight": 0, "a.bias": 0}


def _pair(a: int, b: int) -> dict[str, Any]:
    return {"a": linear(6, a), "c": linear(b, 3)}


def _two(a: int, b: int, out: int) -> dict[str, Any]:
    return {"a": linear(6, a), "b": linear(6, b), "c": linear(out, 3)}


def _two_convs(a: int, b: int) -> dict[str, Any]:
    return {"a": nn.Conv2d(3, a, 3), "b": nn.Conv2d(3, b, 3), "c": linear(16, 3)}


def _gram(s: Any, x: Tensor) -> Tensor:
    """The diagonal of a product of features with themselves: their squares."""
    h = s.a(x)
    out: Tensor = s.c(torch.einsum("bti,btj->bij", h, h).diagonal(dim1=1, dim2=2))
    return out


def _broadcast(s: Any, x: Tensor) -> Tensor:
    h, u = torch.broadcast_tensors(s.a(x), s.u)  # type: ignore[no-untyped-call]
    out: Tensor = s.c(h * u)
    return out


def _modulated(s: Any, x: Tensor) -> Tensor:
    """One convolution for each sample, as one of many groups."""
    w = s.w[None] * s.m(x.mean((2, 3)))[:, None, :, None, None]
    h = F.conv2d(s.a(x).reshape(1, -1, 6, 6), w.flatten(0, 1), padding=1, groups=x.shape[0])
    out: Tensor = s.c(torch.relu(h).view(x.shape[0], -1, 6, 6))
    return out


ROWS = [
    # distances sum over coordinates; prototypes are an axis of their own
    Row("distance", lambda s, x: s.c(torch.exp(-torch.cdist(s.a(x), s.p))), X, [(W, 8), (W, 7)],
        lambda: {"a": linear(6, 8), "p": weight(7, 8), "c": linear(7, 3)}),
    Row("cosine", lambda s, x: s.c(F.cosine_similarity(s.a(x), s.b(x), dim=-1)), SEQUENCE, [(W, 8)],
        lambda: {"a": linear(6, 8), "b": linear(6, 8), "c": linear(5, 3)}),
    Row("cosine-channels", lambda s, x: s.c(F.cosine_similarity(s.a(x), s.b(x)).flatten(1)), IMAGE, [(W, 8)],
        lambda: _two_convs(8, 8)),
    Row("pair-distance", lambda s, x: s.c(F.pairwise_distance(s.a(x), s.b(x), keepdim=True)), X, [(W, 8)],
        lambda: _two(8, 8, 1)),
    Row("vecdot", lambda s, x: s.c(torch.linalg.vecdot(s.a(x), s.b(x))[:, None]), X, [(W, 8)], lambda: _two(8, 8, 1)),
    Row("inner", lambda s, x: s.c(torch.inner(s.a(x), s.w)), X, [(W, 8), (W, 5)],
        lambda: {"a": linear(6, 8), "w": weight(5, 8), "c": linear(5, 3)}),
    Row("tensordot", lambda s, x: s.c(torch.tensordot(s.a(x), s.w, ([1, 2], [1, 2]))), SEQUENCE, [(W, 8), (W, 4)],
        lambda: {"a": linear(6, 8), "w": weight(4, 5, 8), "c": linear(4, 3)}),
    # a weight made of two vectors, of a small and a large one, of a diagonal
    Row("outer", lambda s, x: s.c(torch.relu(x @ torch.outer(s.u, s.v))), X, [(W, 8)],
        lambda: {"u": weight(6), "v": weight(8), "c": linear(8, 3)}),
    Row("addr", lambda s, x: s.c(torch.relu(x @ torch.addr(s.m, s.u, s.v))), X, [(W, 8)],
        lambda: {"m": weight(6, 8), "u": weight(6), "v": weight(8), "c": linear(8, 3)}),
    Row("kron", lambda s, x: s.c(torch.relu(x @ torch.kron(s.u, s.v))), X, [(W, 5)],
        lambda: {"u": weight(2, 5), "v": weight(3, 2), "c": linear(10, 3)}),
    Row("diag-embed", lambda s, x: s.c(s.a(x) @ torch.diag_embed(s.u)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "u": weight(8)}),
    Row("diag", lambda s, x: s.c(s.a(x) @ torch.diag(s.u) + torch.diag(s.w)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "u": weight(8), "w": weight(8, 8)}),
    Row("diagonal", _gram, SEQUENCE, [(W, 8)], lambda: _pair(8, 8)),
    Row("diagonal-beside", lambda s, x: s.c(torch.diagonal(s.w, 1) * s.a(x)), X, [],
        lambda: {**_pair(7, 7), "w": weight(8, 8)}),
    Row("trace", lambda s, x: s.c(s.a(x) * torch.trace(s.w)), X, [(W, 8), (W, 4)],
        lambda: {**_pair(8, 8), "w": weight(4, 4)}),
    Row("cross", lambda s, x: s.c(torch.linalg.cross(s.a(x).view(3, -1, 3), s.b(x).view(3, -1, 3)).flatten(1)), X,
        [(W, 4)], lambda: _two(12, 12, 12)),
    # what hangs together as a whole stays, and other axes pass
    Row("inverse", lambda s, x: s.c(s.a(x) @ torch.linalg.inv(s.w)), X, [], lambda: {**_pair(5, 5), "w": weight(5, 5)}),
    Row("determinants", lambda s, x: s.c(s.a(x) * torch.linalg.det(s.w)), X, [(W, 8)],
        lambda: {**_pair(8, 8), "w": weight(8, 3, 3)}),
    Row("matrix-norm", lambda s, x: s.c(s.a(x) * torch.linalg.matrix_norm(s.w)), X, [(W, 8), (W, 3), (W, 4)],
        lambda: {**_pair(8, 8), "w": weight(8, 3, 4)}),
    Row("stacked", lambda s, x: s.c(torch.hstack([s.a(x), s.b(x)])), X, [(W, 8), (W, 5)], lambda: _two(8, 5, 13)),
    Row("broadcast", _broadcast, X, [(W, 8)],
        lambda: {**_pair(8, 8), "u": weight(1, 8)}),
    # weights made from the input: all samples keep the same channels
    Row("modulated", _modulated, IMAGE, [(W, 5), (W, 7)],
        lambda: {"a": nn.Conv2d(3, 5, 1), "m": linear(3, 5), "w": weight(7, 5, 3, 3), "c": nn.Conv2d(7, 2, 1)}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_matrix_rule(row: Row) -> None:
    inspect(row)


REFERENCES: dict[str, dict[str, Any]] = {
    "cosine": {**OUTS, "b.weight": 0, "b.bias": 0},
    "outer": {"v": 0, "c.weight": 1},
    "kron": {"u": 1, "c.weight": (1, 2)},
    "diag-embed": {**OUTS, "u": 0, "c.weight": 1},
    "diag": {**OUTS, "u": 0, "w": 0, "w ": 1, "c.weight": 1},
    "diagonal": {**OUTS, "c.weight": 1},
    "cross": {f"{n}.{p}": (0, 3) for n in "ab" for p in ("weight", "bias")} | {"c.weight": (1, 3)},
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_narrow_network_is_the_one_cut_by_hand(name: str) -> None:
    check_by_hand(next(row for row in ROWS if row.name == name), REFERENCES[name])
