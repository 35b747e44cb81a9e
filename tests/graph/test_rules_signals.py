"""Transforms, complex numbers, windows and regions: what must be tied, read off by hand, and the laws on each."""

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.elastic import elastic
from tests.graph.by_hand import check_by_hand
from tests.graph.tiny import Row, floats, inspect, linear, weight

X, IMAGE, SEQUENCE = floats(6), floats(3, 8, 8), floats(8, 6)
W = "width"
OUTS: dict[str, Any] = {"a.weight": 0, "a.bias": 0}


def _pair(a: int, b: int) -> dict[str, Any]:
    return {"a": linear(6, a), "c": linear(b, 3)}


def _conv(a: int, b: int) -> dict[str, Any]:
    return {"a": nn.Conv2d(3, a, 3, padding=1), "c": nn.Conv2d(b, 2, 1)}


def _global_filter(s: Any, x: Tensor) -> Tensor:
    """A learned complex weight for each frequency and channel, on images with channels last."""
    h = s.a(x).permute(0, 2, 3, 1)
    z = torch.fft.rfft2(h, dim=(1, 2), norm="ortho") * torch.view_as_complex(s.w)
    out: Tensor = s.c(torch.fft.irfft2(z, s=(8, 8), dim=(1, 2), norm="ortho").permute(0, 3, 1, 2))
    return out


def _fourier_layer(s: Any, x: Tensor) -> Tensor:
    """The layer of a Fourier neural operator: the lowest modes are mixed, the others are zero."""
    z = torch.fft.rfft2(s.a(x))
    low = torch.zeros(x.shape[0], s.w.shape[1], 8, 5, dtype=torch.cfloat)
    low[:, :, :3, :2] = torch.einsum("bixy,ioxy->boxy", z[:, :, :3, :2], s.w)
    out: Tensor = s.c(torch.fft.irfft2(low, s=(8, 8)))
    return out


def _correlation(s: Any, x: Tensor) -> Tensor:
    """Scores from the autocorrelation of queries and keys along time."""
    q, k = torch.fft.rfft(s.q(x), dim=1), torch.fft.rfft(s.k(x), dim=1)
    r = torch.fft.irfft(q * torch.conj(k), n=x.shape[1], dim=1)
    out: Tensor = s.c(torch.softmax(r.mean(-1, keepdim=True), 1) * s.v(x))
    return out


def _rotary(s: Any, x: Tensor) -> Tensor:
    """Pairs of a head turn as complex numbers: three heads of 4."""
    q, k, v = (m(x).view(*x.shape[:2], -1, 4) for m in (s.q, s.k, s.v))
    turn = torch.polar(torch.ones(8, 2), torch.outer(torch.arange(8.0), torch.tensor([1.0, 0.1])))[:, None]
    q, k = (torch.view_as_real(torch.view_as_complex(t.reshape(*t.shape[:3], 2, 2)) * turn).flatten(3) for t in (q, k))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out: Tensor = s.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return out


def _local_attention(s: Any, x: Tensor) -> Tensor:
    """Every pixel weighs the nine around it, each channel with its own weights."""
    h = s.a(x)
    windows = F.unfold(h, 3, padding=1).view(x.shape[0], -1, 9, 64)
    out: Tensor = s.c((windows * torch.softmax(s.k(h).flatten(2), 1)[:, None]).sum(2).view(x.shape[0], -1, 8, 8))
    return out


def _patch_mlp(s: Any, x: Tensor) -> Tensor:
    h = torch.relu(s.m(F.unfold(s.a(x), 4, stride=4).mT)).mT
    out: Tensor = s.c(F.fold(h, (8, 8), 4, stride=4))
    return out


def _unpool(s: Any, x: Tensor) -> Tensor:
    h, places = F.max_pool2d(s.a(x), 2, return_indices=True)
    out: Tensor = s.c(F.max_unpool2d(torch.relu(s.b(h)), places, [2, 2]))
    return out


def _spectrum(s: Any, x: Tensor) -> Tensor:
    """A mask on the spectrum of a signal: its frequencies are fixed, the mask's hidden units are not."""
    z = torch.stft(x, 4, 2, window=s.w, return_complex=True)
    return torch.istft(z * torch.sigmoid(s.c(torch.relu(s.a(z.abs().mT)))).mT, 4, 2, window=s.w)


def _filter() -> Tensor:
    return torch.randn(8, 8, 3, 2, dtype=torch.cfloat, requires_grad=True)


ROWS = [
    # transformed along time or space: channels bend; transformed along channels: they are mixed for good
    Row("fft-time", lambda s, x: s.c(torch.fft.fft(s.a(x), dim=1).real), SEQUENCE, [(W, 9)], lambda: _pair(9, 9)),
    Row("fft-channels", lambda s, x: s.c(torch.fft.fft(s.a(x), dim=-1).real), SEQUENCE, [], lambda: _pair(9, 9)),
    Row("fft-default", lambda s, x: s.c(torch.fft.rfft(s.a(x).mT).abs().mT), SEQUENCE, [(W, 9)], lambda: _pair(9, 9)),
    Row("fft-all", lambda s, x: s.c(torch.fft.fftn(s.a(x)).imag), SEQUENCE, [], lambda: _pair(9, 9)),
    Row("fft-last-two", lambda s, x: s.c(torch.fft.fft2(s.a(x)).real), IMAGE, [(W, 5)], lambda: _conv(5, 5)),
    Row("fft-sizes", lambda s, x: s.c(torch.fft.fftn(s.a(x), s=(4, 4)).abs()), IMAGE, [(W, 5)], lambda: _conv(5, 5)),
    Row("fft-shift", lambda s, x: s.c(torch.fft.fftshift(s.a(x), (2, 3)) * s.a(x)), IMAGE, [(W, 5)],
        lambda: _conv(5, 5)),
    Row("correlation", _correlation, SEQUENCE, [(W, 7), (W, 8)],
        lambda: {"q": linear(6, 7), "k": linear(6, 7), "v": linear(6, 8), "c": linear(8, 3)}),
    Row("global-filter", _global_filter, IMAGE, [(W, 5)], lambda: {**_conv(5, 5), "w": weight(8, 5, 5, 2)}),
    Row("fourier-layer", _fourier_layer, IMAGE, [(W, 8), (W, 8)],
        lambda: {**_conv(8, 8), "w": _filter()}),
    Row("spectrum", _spectrum, torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), [(W, 8)],
        lambda: {"w": torch.hann_window(4) + 0.1, "a": linear(3, 8), "c": linear(8, 3)}),
    # complex numbers: their two parts are one unit
    Row("complex-pairs", lambda s, x: s.c(torch.view_as_complex(s.a(x).view(3, -1, 2)).abs()), X, [(W, 4)],
        lambda: _pair(8, 4)),
    Row("complex-parts", lambda s, x: s.c((torch.complex(s.a(x), s.b(x)) * s.w).imag), X, [(W, 7)],
        lambda: {**_pair(7, 7), "b": linear(6, 7), "w": torch.randn(7, dtype=torch.cfloat, requires_grad=True)}),
    Row("polar", lambda s, x: s.c(torch.view_as_real(torch.polar(torch.exp(s.a(x)), s.b(x))).sum(-1)), X, [(W, 7)],
        lambda: {**_pair(7, 7), "b": linear(6, 7)}),
    Row("rotary", _rotary, SEQUENCE, [("heads", 3)],
        lambda: {**{n: linear(6, 12) for n in "qkv"}, "c": linear(12, 3)}),
    # windows: a channel lives in all its taps
    Row("local-attention", _local_attention, IMAGE, [(W, 5)], lambda: {**_conv(5, 5), "k": nn.Conv2d(5, 9, 1)}),
    Row("patches", _patch_mlp, IMAGE, [(W, 5), (W, 4)], lambda: {**_conv(5, 4), "m": linear(80, 64)}),
    Row("windows-time", lambda s, x: s.c(s.a(x).unfold(1, 4, 2).flatten(2)), SEQUENCE, [(W, 5)], lambda: _pair(5, 20)),
    Row("windows-channels", lambda s, x: s.c(s.a(x).unfold(1, 2, 2).sum(2)), X, [], lambda: _pair(8, 4)),
    Row("unpool", _unpool, IMAGE, [(W, 5)], lambda: {**_conv(5, 5), "b": nn.Conv2d(5, 5, 1)}),
    Row("difference", lambda s, x: s.c(torch.diff(s.a(x), dim=1)), SEQUENCE, [(W, 5)], lambda: _pair(5, 5)),
    Row("difference-channels", lambda s, x: s.c(torch.diff(s.a(x))), SEQUENCE, [], lambda: _pair(6, 5)),
    Row("fake-quantized", lambda s, x: s.c(F.linear(x, torch.fake_quantize_per_channel_affine(
        s.a.weight, s.s, s.z, 0, -128, 127))), X, [(W, 8)],
        lambda: {**_pair(8, 8), "s": torch.rand(8) / 9 + 0.01, "z": torch.arange(8, dtype=torch.int32) % 3},
        silent={"z[0]": "codes are centred anew"}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_signal_rule(row: Row) -> None:
    inspect(row)


REFERENCES: dict[str, dict[str, Any]] = {
    "fft-time": {**OUTS, "c.weight": 1},
    "fft-last-two": {**OUTS, "c.weight": 1},
    "global-filter": {**OUTS, "w": 2, "c.weight": 1},
    "complex-parts": {**OUTS, "b.weight": 0, "b.bias": 0, "w": 0, "c.weight": 1},
    "local-attention": {**OUTS, "k.weight": 1, "c.weight": 1},
    "windows-time": {**OUTS, "c.weight": (1, 4)},
    "unpool": {**OUTS, "b.weight": 1, "c.weight": 1, "b.weight ": 0, "b.bias": 0},
    "complex-pairs": {"a.weight": (0, 2), "a.bias": (0, 2), "c.weight": 1},
    "rotary": {f"{n}.{p}": (0, 4) for n in "qkv" for p in ("weight", "bias")} | {"c.weight": (1, 4)},
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_narrow_network_is_the_one_cut_by_hand(name: str) -> None:
    check_by_hand(next(row for row in ROWS if row.name == name), REFERENCES[name])


class _Regions(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.c, self.kind = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(20, 3), kind

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        regions = getattr(importlib.import_module("torchvision.ops"), self.kind)(self.a(x), boxes, 2)
        out: Tensor = self.c(regions.flatten(1))
        return out


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_channels_pass_through_regions(kind: str) -> None:
    pytest.importorskip("torchvision")
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [1.0, 1, 1, 6, 6]])
    net = elastic(_Regions(kind).eval(), (IMAGE[:2], boxes), min_size=1)
    assert [group.units for group in net.graph.groups] == [5]
    assert net.dropped == ()
