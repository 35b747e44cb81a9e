"""Random small networks out of the pieces that real ones are made of.

A *plan* is plain data (so that hypothesis can make it smaller): a list of pieces, each a name with its numbers. Pieces
take and give a stream `[N, C, H, W]` (images) or `[N, T, C]` (tokens).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Plan = list[tuple[Any, ...]]


class Step(nn.Module):
    """A piece: layers and a function of them and the stream."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                setattr(self, name, layer)
            else:
                self.register_parameter(name, nn.Parameter(layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


class Stack(nn.Module):
    """Pieces in a row, then a head over the mean."""

    def __init__(self, kind: str, plan: Plan) -> None:
        super().__init__()
        self.kind = kind
        make, width = (_image, 3) if kind == "image" else (_tokens, 5)
        steps = []
        for piece in plan:
            step, width = make(piece, width)
            steps.append(step)
        self.steps = nn.Sequential(*steps)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps(x)
        out: Tensor = self.head(x.mean((2, 3)) if self.kind == "image" else x.mean(1) + x[:, -1])
        return out


def _divisor(n: int, wanted: int) -> int:
    return next(d for d in range(min(n, wanted), 0, -1) if n % d == 0)


def _even(n: int) -> int:
    return n + n % 2


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu, F.gelu, F.hardswish, torch.tanh, lambda x: F.relu(x, inplace=True), lambda x: F.elu_(x + 0)
]  # fmt: skip


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _gate(x: Tensor, dim: int) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _image(piece: tuple[Any, ...], c: int) -> tuple[nn.Module, int]:
    name, *numbers = piece
    if name == "conv":
        out, groups = numbers[0], _divisor(c, numbers[1])
        out = -(-out // groups) * groups
        return nn.Conv2d(c, out, 1 + 2 * numbers[2], padding=numbers[2], groups=groups, bias=numbers[3]), out
    if name == "norm":
        norms = [nn.BatchNorm2d(c), nn.GroupNorm(_divisor(c, 3), c), nn.GroupNorm(c, c), nn.BatchNorm2d(c)]
        return norms[numbers[0]], c
    if name == "act":
        return Step(lambda _, x: ACTIVATIONS[numbers[0]](x)), c
    if name == "prelu":
        return nn.PReLU(c), c
    if name == "residual":
        inner, width = _sequence(_image, numbers[0], c)
        return Step(lambda s, x: x + s.back(s.inner(x)), inner=inner, back=nn.Conv2d(width, c, 1)), c
    if name == "dense":
        inner, width = _sequence(_image, numbers[0], c)
        return Step(lambda s, x: torch.cat([x, s.inner(x)][:: numbers[1]], 1), inner=inner), c + width
    if name == "squeeze":
        return Step(lambda s, x: x * torch.sigmoid(s.a(x.mean((2, 3), keepdim=True))), a=nn.Conv2d(c, c, 1)), c
    if name == "shuffle" or name == "gate" or name == "glu":
        widen = nn.Conv2d(c, _even(c), 1)
        act = {"shuffle": _shuffle, "gate": lambda x: _gate(x, 1), "glu": lambda x: F.glu(x, 1)}[name]
        return Step(lambda s, x: act(s.a(x)), a=widen), _even(c) // (1 if name == "shuffle" else 2)  # type: ignore[no-untyped-call]
    if name == "pad":
        return Step(lambda _, x: F.pad(x, (0, 0, 0, 0, numbers[0], numbers[1]))), c + numbers[0] + numbers[1]
    if name == "split":
        k = max(1, c // 3)
        layers = {"a": nn.Conv2d(k, 4, 1), "b": nn.Conv2d(c - k, 4, 1)} if c > 1 else {"a": nn.Conv2d(1, 4, 1)}
        if c == 1:
            return layers["a"], 4
        return Step(lambda s, x: s.a(x[:, :k]) + s.b(x[:, -(c - k) :]), **layers), 4
    return Step(lambda _, x: F.avg_pool2d(x, 3, 1, 1) if numbers[0] else F.max_pool2d(x, 3, 1, 1)), c


def _attend(order: int, heads: int, dim: int) -> Callable[[Any, Tensor], Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = s.qkv(x)
        if order == 0:
            q, k, v = qkv.reshape(n, t, 3, heads, dim).permute(2, 0, 3, 1, 4)
        elif order == 1:
            q, k, v = qkv.view(n, t, heads, 3 * dim).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = (part.view(n, t, heads, dim).transpose(1, 2) for part in qkv.chunk(3, -1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=order == 2)
        mixed: Tensor = x + s.proj(out.transpose(1, 2).flatten(2))
        return mixed

    return forward


def _tokens(piece: tuple[Any, ...], c: int) -> tuple[nn.Module, int]:
    name, *numbers = piece
    if name == "linear":
        return nn.Linear(c, numbers[0], bias=numbers[1]), numbers[0]
    if name == "norm":
        return [nn.LayerNorm(c), nn.RMSNorm(c)][numbers[0]], c
    if name == "act":
        return Step(lambda _, x: ACTIVATIONS[numbers[0]](x)), c
    if name == "residual":
        inner, width = _sequence(_tokens, numbers[0], c)
        return Step(lambda s, x: x + s.back(s.inner(x)), inner=inner, back=nn.Linear(width, c)), c
    if name == "dense":
        inner, width = _sequence(_tokens, numbers[0], c)
        return Step(lambda s, x: torch.cat([x, s.inner(x)][:: numbers[1]], 2), inner=inner), c + width
    if name == "attention":
        order, heads, dim = numbers
        layers = {"qkv": nn.Linear(c, 3 * heads * dim), "proj": nn.Linear(heads * dim, c)}
        return Step(_attend(order, heads, dim), **layers), c
    if name == "gate":
        return Step(lambda s, x: _gate(s.a(x), 2), a=nn.Linear(c, _even(c))), _even(c) // 2
    if name == "heads-max":
        widen = nn.Linear(c, numbers[0] * numbers[1])
        return Step(lambda s, x: s.a(x).unflatten(2, tuple(numbers)).amax(3), a=widen), numbers[0]
    if name == "gru":
        layer = nn.GRU(c, numbers[0], batch_first=True, bidirectional=numbers[1])
        return Step(lambda s, x: s.a(x)[0], a=layer), numbers[0] * (1 + numbers[1])
    if name == "position":
        return Step(lambda s, x: x + s.p, p=torch.randn(1, 4, c)), c
    if name == "time":
        return Step(
            lambda s, x: x + s.b(torch.relu(s.a(x.mT))).mT, a=nn.Linear(4, numbers[0]), b=nn.Linear(numbers[0], 4)
        ), c
    if name == "conv":
        layer1 = nn.Conv1d(c, numbers[0], 3, padding=1)
        return Step(lambda s, x: s.a(x.transpose(1, 2)).transpose(1, 2), a=layer1), numbers[0]
    moves: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.flip(2), lambda x: x.roll(1, 1), lambda x: x.flip(1), lambda x: F.normalize(x, dim=-1)
    ]  # fmt: skip
    return Step(lambda _, x: moves[numbers[0]](x)), c


def _sequence(make: Any, plan: Plan, c: int) -> tuple[nn.Module, int]:
    steps = []
    for piece in plan:
        step, c = make(piece, c)
        steps.append(step)
    return nn.Sequential(*steps), c


def _piece(*parts: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts))


_SIZES, _FLAGS = st.integers(2, 9), st.booleans()
_IMAGE = st.one_of(
    _piece("conv", _SIZES, st.integers(1, 4), st.integers(0, 1), _FLAGS), _piece("norm", st.integers(0, 3)),
    _piece("act", st.integers(0, len(ACTIVATIONS) - 1)), _piece("prelu"), _piece("squeeze"), _piece("shuffle"),
    _piece("gate"), _piece("glu"), _piece("pad", st.integers(0, 2), st.integers(0, 2)), _piece("split"),
    _piece("pool", _FLAGS),
)  # fmt: skip
_TOKENS = st.one_of(
    _piece("linear", _SIZES, _FLAGS), _piece("norm", st.integers(0, 1)),
    _piece("act", st.integers(0, len(ACTIVATIONS) - 1)),
    _piece("attention", st.integers(0, 2), st.integers(1, 3), st.integers(1, 3)), _piece("gate"),
    _piece("heads-max", st.integers(2, 4), st.integers(1, 3)), _piece("gru", _SIZES, _FLAGS), _piece("position"),
    _piece("time", _SIZES), _piece("conv", _SIZES), _piece("move", st.integers(0, 3)),
)  # fmt: skip


def plans(kind: str) -> st.SearchStrategy[Plan]:
    """Two to six pieces, some of them with pieces inside."""
    single = _IMAGE if kind == "image" else _TOKENS
    inside = st.lists(single, min_size=1, max_size=3)
    nested = st.one_of(single, _piece("residual", inside), _piece("dense", inside, st.sampled_from([1, -1])))
    first = ("conv", 8, 1, 1, True) if kind == "image" else ("linear", 8, True)
    return st.lists(nested, min_size=1, max_size=5).map(lambda rest: [first, *rest])


def example(kind: str) -> Tensor:
    """Two samples."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 3, 5, 5) if kind == "image" else (2, 4, 5), generator=generator)
