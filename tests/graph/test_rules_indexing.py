"""Operators that choose entries by value: what must be tied, read off by hand, and the laws on every network."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.elastic import elastic
from tests.graph.tiny import Row, floats, inspect, linear, weight

X, SEQUENCE, TALL = floats(6), floats(5, 6), floats(8)
W = "width"
EDGES = torch.tensor([[0, 1, 2, 0, 1], [1, 2, 0, 2, 0]])


def _pair(a: int, b: int, more: int = 6) -> dict[str, Any]:
    return {"a": linear(more, a), "c": linear(b, 3)}


def _places(*places: int) -> dict[str, Any]:
    return {"i": torch.tensor(places)}


def _scatter_add(s: Any, x: Tensor) -> Tensor:
    """Messages along edges, summed at their targets: the index is the same for all channels."""
    h = s.a(x)
    index = s.e[1][:, None].expand(-1, h.shape[1])
    out: Tensor = s.c(torch.zeros_like(h).scatter_add(0, index, h[s.e[0]]))
    return out


def _index_add(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    out: Tensor = s.c(torch.zeros(x.shape[0], 8).index_add_(0, s.e[1], torch.relu(h[s.e[0]])))
    return out


def _scatter_mean(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    index = s.e[1].unsqueeze(-1).expand_as(h[s.e[0]])
    out: Tensor = s.c(torch.zeros_like(h).scatter_reduce(0, index, h[s.e[0]], "mean", include_self=False))
    return out


def _edge_attention(s: Any, x: Tensor) -> Tensor:
    """Shares of a node's incoming edges, head by head (GAT)."""
    h = s.a(x).view(-1, 4, 3)
    share = (h * s.w).sum(-1)[s.e[0]].exp()
    total = torch.zeros(x.shape[0], 4).scatter_add(0, s.e[1][:, None].expand_as(share), share)
    mixed = h[s.e[0]] * (share / total[s.e[1]])[..., None]
    out: Tensor = s.c(torch.zeros_like(h).index_add(0, s.e[1], mixed).flatten(1))
    return out


def _masked_rows(s: Any, x: Tensor) -> Tensor:
    """Tokens that are marked take the rows of another source, in order."""
    mask = (x[..., 0] > 100).unsqueeze(-1).expand(-1, -1, 8)
    out: Tensor = s.c(s.a(x).masked_scatter(mask, s.b(x).flatten(0, 1)))
    return out


def _put(s: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 8)
    h[s.i] = s.a(x)[:2]
    out: Tensor = s.c(h)
    return out


def _put_units(s: Any, x: Tensor) -> Tensor:
    h = torch.zeros(8, x.shape[0])
    h[s.i] = s.a(x).T
    out: Tensor = s.c(h.T)
    return out


def _put_slice(s: Any, x: Tensor) -> Tensor:
    """Tokens are written through a view."""
    h = torch.zeros(x.shape[0], 5, 8)
    h[:, s.i] = s.a(x)[:, :3]
    out: Tensor = s.c(h)
    return out


def _mask_units(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h = h.index_put((h > 0.3,), torch.tensor(0.1))
    out: Tensor = s.c(h)
    return out


def _multi_query(s: Any, x: Tensor) -> Tensor:
    """Falcon's way to cut one key and one value head off the end."""
    heads = s.a(x).view(x.shape[0], 5, 6, 4)
    q, k, v = heads[..., :-2, :], heads[..., [-2], :], heads[..., [-1], :]
    mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    out: Tensor = s.c(mixed.transpose(1, 2).reshape(x.shape[0], 5, 16))
    return out


def _codes(s: Any, x: Tensor) -> Tensor:
    """Vector quantisation: the nearest of 8 codes takes the place of the vector."""
    h = s.a(x)
    far = s.w.square().sum(-1) - 2 * h @ s.w.T
    out: Tensor = s.c(F.embedding(far.argmin(-1), s.w))
    return out


ROWS = [
    # what a graph network does: rows are chosen, added up by row, and channels bend
    Row("gather-rows", lambda s, x: s.c(s.a(x).gather(1, s.i[:, None].expand(x.shape[0], -1, 8))), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), **_places(3, 1)}),
    # the units that are chosen from stay; the list of places is a width of its own
    Row("gather-units", lambda s, x: s.c(s.a(x).gather(1, s.i.expand(x.shape[0], -1))), X, [(W, 2)],
        lambda: {**_pair(8, 2), **_places(3, 1)}),
    Row("take-along", lambda s, x: s.c(s.a(x).take_along_dim(s.i.view(1, 2, 1).expand(x.shape[0], 2, 8), 1)), SEQUENCE,
        [(W, 8)], lambda: {**_pair(8, 8), **_places(3, 1)}),
    # a different entry for each channel: the index has channels too, and those of the input are fixed
    Row("gather-by-channel", lambda s, x: s.c(s.a(x).gather(1, x.argsort(1)[:, :2])), SEQUENCE, [],
        lambda: _pair(6, 6)),
    Row("scatter-add", _scatter_add, X, [(W, 8)], lambda: {**_pair(8, 8), "e": EDGES}),
    Row("scatter-mean", _scatter_mean, X, [(W, 8)], lambda: {**_pair(8, 8), "e": EDGES}),
    Row("edge-attention", _edge_attention, X, [(W, 4)], lambda: {**_pair(12, 12), "w": weight(4, 3), "e": EDGES}),
    Row("scatter-units", lambda s, x: s.c(torch.zeros_like(s.b(x)).scatter_add(1, s.i.expand(x.shape[0], -1), s.a(x))),
        X, [(W, 3)], lambda: {**_pair(3, 8), "b": linear(6, 8), **_places(1, 5, 1)}),
    Row("index-add", _index_add, X, [(W, 8)], lambda: {**_pair(8, 8), "e": EDGES}),
    Row("index-copy", lambda s, x: s.c(s.a(x).index_copy(1, s.i, s.b(x)[:, :2])), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), "b": linear(6, 8), **_places(3, 1)}),
    Row("index-fill", lambda s, x: s.c(s.a(x).index_fill(1, s.i, 0.5)), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), **_places(3, 1)}),
    Row("index-fill-units", lambda s, x: s.c(s.a(x).index_fill(1, s.i, 0.5)), X, [],
        lambda: {**_pair(8, 8), **_places(3, 1)}),
    Row("index-put", _put, X, [(W, 8)], lambda: {**_pair(8, 8), **_places(2, 0)}),
    Row("index-put-units", _put_units, X, [], lambda: {**_pair(3, 8), **_places(3, 1, 0)}),
    Row("index-put-slice", _put_slice, SEQUENCE, [(W, 8)], lambda: {**_pair(8, 8), **_places(3, 1, 0)}),
    Row("index-put-mask", _mask_units, X, [(W, 8)], lambda: _pair(8, 8)),
    Row("index-two", lambda s, x: s.c(s.a(x)[:, s.i, :, s.j].sum(0)), floats(5, 4, 6),
        [], lambda: {"a": linear(6, 8), "c": linear(4, 3), **_places(3, 1), "j": torch.tensor([2, 0])}),
    Row("index-channels-last", lambda s, x: s.c(s.a(x)[s.i, :2]), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), "i": torch.tensor([[0, 2], [1, 1]])}),
    Row("index-select", lambda s, x: s.c(s.a(x).index_select(1, s.i)), SEQUENCE, [(W, 8)],
        lambda: {**_pair(8, 8), **_places(3, 1)}),
    Row("masked-scatter", _masked_rows, SEQUENCE, [(W, 8)], lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    Row("embedding-bag", lambda s, x: s.c(F.embedding_bag(s.e, s.w)), X, [(W, 8)],
        lambda: {"w": weight(3, 8), "e": EDGES, "c": linear(8, 3)}),
    Row("bucketize", lambda s, x: s.c(torch.bucketize(s.a(x), s.b).float()), X, [(W, 8)],
        lambda: {**_pair(8, 8), "b": torch.tensor([-0.5, 0.0, 0.5])}),
    Row("masked-select", lambda s, x: s.c(s.a(x)) + s.a(x).masked_select(s.a(x) > 0).sum(), X, [], lambda: _pair(8, 8),
        ("masked_select",)),
    # a list of neighbouring places is a slice
    Row("list", lambda s, x: s.c(s.a(x)[:, [3, 4, 5]]), X, [(W, 3), (W, 3), (W, 2)], lambda: _pair(8, 3),
        silent={f"a.{n}[0]": "the network throws these entries away" for n in ("weight", "bias")}),
    Row("list-apart", lambda s, x: s.c(s.a(x)[:, [3, 5]]), X, [(W, 2)], lambda: _pair(8, 2)),
    Row("list-multi-query", _multi_query, SEQUENCE, [("heads", 4)], lambda: {"a": linear(6, 24), "c": linear(16, 3)}),
    # what was chosen by value may be chosen from: the axes are tied
    Row("topk-values", lambda s, x: s.c(s.a(x).topk(4, 1).values), X, [(W, 8)], lambda: _pair(8, 4)),
    Row("argmax-codes", _codes, TALL, [(W, 4), (W, 8)], lambda: {**_pair(4, 4, 8), "w": weight(8, 4)},
        silent={"a.bias[0]": "the nearest code stays the nearest"}),
    Row("argmax-one-hot", lambda s, x: s.c(F.one_hot(s.a(x).argmax(1), 8).float() * s.a(x)), X, [(W, 8)],
        lambda: _pair(8, 8)),
    Row("max-index", lambda s, x: s.c(F.embedding(s.a(x).max(1).indices, s.w)), X, [(W, 8), (W, 4)],
        lambda: {**_pair(8, 4), "w": weight(8, 4)}),
    Row("equals-counter", lambda s, x: s.c((s.a(x).argmax(1)[:, None] == torch.arange(8)).float()), X, [(W, 8)],
        lambda: _pair(8, 8)),
    Row("gather-by-topk", lambda s, x: s.c(s.a(x).gather(1, s.b(x).topk(4).indices)), X, [(W, 8)],
        lambda: {**_pair(8, 4), "b": linear(6, 8)}),
    # any other use of such an index fixes what it stands for
    Row("index-times-two", lambda s, x: s.c(F.embedding(s.a(x).argmax(1) // 2, s.w)), X, [(W, 5)],
        lambda: {**_pair(8, 5), "w": weight(4, 5)}),
    Row("index-of-other-size", lambda s, x: s.c(F.embedding(s.a(x).argmax(1), s.w)), X, [(W, 5)],
        lambda: {**_pair(8, 5), "w": weight(9, 5)}),
    Row("index-equals-number", lambda s, x: s.c((s.a(x).argmax(1) == 3).float()[:, None]), X, [], lambda: _pair(8, 1)),
    Row("index-as-number", lambda s, x: s.c(s.a(x).argmax(1).float()[:, None]), X, [], lambda: _pair(8, 1)),
    Row("index-output", lambda s, x: (s.c(s.a(x)), s.a(x).argmax(1)), X, [], lambda: _pair(8, 8)),
    Row("index-with-ties", lambda s, x: s.c(F.embedding((s.a(x) > 0).float().argmax(1), s.w)), X, [(W, 4)],
        lambda: {**_pair(8, 4), "w": weight(8, 4)}),
    Row("argsort", lambda s, x: s.c(s.a(x).gather(1, s.a(x).argsort(1))), X, [], lambda: _pair(8, 8)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_indexing_rule(row: Row) -> None:
    inspect(row)


class Gcn(nn.Module):
    """Two layers of graph convolution: normalised sums over neighbours."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        degree = torch.zeros(x.shape[0]).scatter_add(0, target, torch.ones_like(target, dtype=x.dtype)).clamp(min=1)
        h = self.first(x)
        h = torch.zeros_like(h).index_add(0, target, h[source] / degree[source].sqrt()[:, None])
        out: Tensor = self.second(torch.relu(h / degree.sqrt()[:, None]))
        return out


def test_a_graph_network_at_half_width_is_the_small_network() -> None:
    torch.manual_seed(0)
    wide, narrow = Gcn(8).eval(), Gcn(6).eval()
    x, edges = torch.randn(7, 6), torch.randint(7, (2, 12))
    narrow.load_state_dict({"first.weight": wide.first.weight[:6], "first.bias": wide.first.bias[:6],
                            "second.weight": wide.second.weight[:, :6], "second.bias": wide.second.bias})  # fmt: skip
    family = elastic(wide, (x, edges))
    assert [(g.name, g.units) for g in family.graph.groups] == [("width:first", 8)]
    torch.testing.assert_close(family.extract({"width:first": 6})(x, edges), narrow(x, edges))
