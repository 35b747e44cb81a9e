"""Random small networks out of the pieces that real ones are made of.

A *plan* is plain data (so that hypothesis can make it smaller): a list of pieces, each a name with its numbers. Pieces
take and give a stream `[N, C, H, W]` (images) or `[N, T, C]` (tokens). Their code takes every size that can shrink from
its operands, so that a narrower network is the same code with smaller parameters: `narrow`.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Plan = list[tuple[Any, ...]]
Made = tuple[nn.Module, int]
STEPS = 4


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
        table, width = (IMAGE, 3) if kind == "image" else (TOKENS, 5)
        self.steps, width = _sequence(table, plan, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps(x)
        out: Tensor = self.head(x.mean((2, 3)) if self.kind == "image" else x.mean(1) + x[:, -1])
        return out


def narrow(model: nn.Module, kept: Mapping[str, Mapping[int, Tensor]]) -> nn.Module:
    """The same code with smaller parameters.

    Args:
        model: a `Stack`.
        kept: name of a parameter or buffer to axis to the indices that stay; int64.
    """
    small = copy.deepcopy(model)
    before = {name: tensor.shape for name, tensor in small.state_dict().items()}
    for name, axes in kept.items():
        path, _, leaf = name.rpartition(".")
        owner = small.get_submodule(path)
        part = getattr(owner, leaf).detach()
        for axis, indices in axes.items():
            part = part.index_select(axis, indices)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(part)
        else:
            owner._buffers[leaf] = part
    for path, module in small.named_modules():
        _fit(module, before.get(f"{path}.weight"))
    return small


def _fit(module: nn.Module, before: torch.Size | None) -> None:
    """What torch's layers say about their own sizes, once their parameters are smaller."""
    if isinstance(module, nn.GRU | nn.LSTM | nn.RNN):
        first, second = (getattr(module, f"weight_{part}_l0") for part in ("ih", "hh"))
        if not module.proj_size:
            module.hidden_size = second.shape[1]
        else:
            module.proj_size = second.shape[1]
        module.input_size = first.shape[1]
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    elif isinstance(module, nn.GRUCell | nn.LSTMCell | nn.RNNCell):
        module.hidden_size = module.weight_hh.shape[1]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and before is not None:
        module.num_groups = max(1, module.num_groups * len(module.weight) // before[0])
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and before is not None and module.groups > 1:
        module.groups = module.groups * module.weight.shape[0] // before[0]


def _divisor(n: int, wanted: int) -> int:
    return next(d for d in range(min(n, wanted), 0, -1) if n % d == 0)


def _even(n: int) -> int:
    return n + n % 2


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu, F.gelu, F.hardswish, torch.tanh, lambda x: F.relu(x, inplace=True), lambda x: F.elu_(x + 0),
    F.softplus, lambda x: x.clamp(-1, 1), lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: torch.multiply(x, x),
]  # fmt: skip


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _gate(x: Tensor, dim: int) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _each(dim: int) -> Callable[[Any, Tensor], Tensor]:
    """Two layers on the two parts of the stream."""

    def forward(s: Any, x: Tensor) -> Tensor:
        k = s.a.weight.shape[1]
        first, second = torch.split_with_sizes(x, [k, x.shape[dim] - k], dim)
        joint: Tensor = s.a(first) + s.b(second)
        return joint

    return forward


# -- images ----------------------------------------------------------------------------------------------------------


def _conv(c: int, out: int, groups: int, taps: int, bias: bool, mode: int) -> Made:
    groups = c if mode == 3 else _divisor(c, groups)
    out = -(-out // groups) * groups
    options: dict[str, Any] = {"groups": groups, "bias": bias}
    if mode == 2:
        return nn.ConvTranspose2d(c, out, 1 + 2 * taps, padding=taps, **options), out
    return nn.Conv2d(c, out, 1 + 2 * taps, padding="same" if mode == 1 else taps, **options), out


def _norm(c: int, kind: int) -> Made:
    if kind == 4:
        return Step(lambda _, x: F.instance_norm(x)), c
    norms = [nn.BatchNorm2d(c), nn.GroupNorm(_divisor(c, 3), c), nn.GroupNorm(c, c), nn.GroupNorm(1, c)]
    return norms[kind], c


def _residual(c: int, plan: Plan) -> Made:
    inner, width = _sequence(IMAGE, plan, c)
    return Step(lambda s, x: x + s.back(s.inner(x)), inner=inner, back=nn.Conv2d(width, c, 1)), c


def _dense(c: int, plan: Plan, order: int) -> Made:
    inner, width = _sequence(IMAGE, plan, c)
    return Step(lambda s, x: torch.cat([x, s.inner(x)][::order], 1), inner=inner), c + width


def _squeeze(c: int) -> Made:
    return Step(lambda s, x: x * torch.sigmoid(s.a(x.mean((2, 3), keepdim=True))), a=nn.Conv2d(c, c, 1)), c


def _halves(c: int, kind: str) -> Made:
    act: Callable[[Tensor], Tensor] = {
        "shuffle": _shuffle, "gate": lambda x: _gate(x, 1), "glu": lambda x: F.glu(x, 1),
        "channel-shuffle": lambda x: F.channel_shuffle(x, 2), "max": lambda x: torch.maximum(*x.chunk(2, 1)),
    }[kind]  # fmt: skip
    made = max(4, _even(c))  # of two halves with one channel each, each half would be a unit
    return Step(lambda s, x: act(s.a(x)), a=nn.Conv2d(c, made, 1)), made // (1 if "shuffle" in kind else 2)


def _pad(c: int, before: int, after: int) -> Made:
    return Step(lambda _, x: F.pad(x, (0, 0, 0, 0, before, after))), c + before + after


def _split(c: int) -> Made:
    if c == 1:
        return nn.Conv2d(1, 4, 1), 4
    return Step(_each(1), a=nn.Conv2d(max(1, c // 3), 4, 1), b=nn.Conv2d(c - max(1, c // 3), 4, 1)), 4


def _pool(c: int, kind: int) -> Made:
    pools: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: x.roll((1, -1), (2, 3)),
        lambda x: F.interpolate(F.max_pool2d(x, 2), size=5),
        lambda x: F.pad(x, (1, 1, 1, 1), "reflect")[:, :, 1:-1, :5],
        lambda x: x - x.amin((2, 3), keepdim=True), lambda x: F.normalize(x, dim=1),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x)[..., :2], s=(5, 5)), lambda x: torch.rot90(x, 1, (2, 3)),
        lambda x: F.unfold(x, 3, padding=1).view(x.shape[0], -1, 9, 5, 5).amax(2),
        lambda x: F.fold(F.unfold(x, 3, padding=1), (5, 5), 3, padding=1) / 9,
        lambda x: F.pad(x.cumsum(3), (1, 0)).unfold(2, 2, 1).mean(-1).unfold(3, 2, 1).sum(-1).tile(2, 1)[:, :, 1:6],
    ]  # fmt: skip
    return Step(lambda _, x: pools[kind % len(pools)](x)), c


def _fourier(c: int) -> Made:
    w = torch.randn(c, 5, 3, 2)
    return Step(lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(s.w), s=(5, 5)), w=w), c


def _windows(c: int, out: int) -> Made:
    """A convolution by hand."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y: Tensor = s.w.flatten(1) @ F.unfold(x, 3, padding=1)
        return y.view(x.shape[0], -1, 5, 5)

    return Step(forward, w=torch.randn(out, c, 3, 3)), out


def _pixels(c: int, out: int) -> Made:
    return Step(lambda s, x: F.pixel_shuffle(s.a(x), 2)[:, :, ::2, ::2], a=nn.Conv2d(c, 4 * out, 1)), out


def _twice(c: int) -> Made:
    return Step(lambda s, x: s.a(torch.relu(s.a(x))), a=nn.Conv2d(c, c, 1)), c


def _modulated(c: int, out: int) -> Made:
    def forward(s: Any, x: Tensor) -> Tensor:
        w = s.w[None] * s.m(x.mean((2, 3)))[:, None, :, None, None]
        y = F.conv2d(x.reshape(1, -1, 5, 5), w.flatten(0, 1), padding=1, groups=x.shape[0])
        return y.view(x.shape[0], -1, 5, 5)

    return Step(forward, w=torch.randn(out, c, 3, 3), m=nn.Linear(c, c)), out


def _write(c: int) -> Made:
    """The first channels, and then a row, are written over."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y, k = torch.zeros_like(x), s.scale.shape[0]
        y[:, :k] = x[:, :k] * s.scale[:, None, None]
        y[:, k:] = x[:, k:]
        y[:, :, 0] = x[:, :, 1]
        return y

    return Step(forward, scale=torch.randn(max(1, c // 2))), c


# -- tokens ----------------------------------------------------------------------------------------------------------


def _attend(order: int, dim: int) -> Callable[[Any, Tensor], Tensor]:
    """Of several heads: in a single one, entries would bend."""

    def forward(s: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = s.qkv(x)
        if order == 0:
            q, k, v = qkv.reshape(n, t, 3, -1, dim).permute(2, 0, 3, 1, 4)
        elif order == 1:
            q, k, v = qkv.view(n, t, -1, 3 * dim).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = (part.view(n, t, -1, dim).transpose(1, 2) for part in qkv.chunk(3, -1))
        if order == 3:
            scores = torch.einsum("nhtd,nhsd->nhts", q, k) / dim**0.5
            out = torch.einsum("nhts,nhsd->nhtd", torch.softmax(scores, -1), v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=order == 2, scale=0.5)
        mixed: Tensor = x + s.proj(out.transpose(1, 2).flatten(2))
        return mixed

    return forward


def _attention(c: int, order: int, heads: int, dim: int) -> Made:
    return Step(_attend(order, dim), qkv=nn.Linear(c, 3 * heads * dim), proj=nn.Linear(heads * dim, c)), c


def _grouped_queries(c: int, order: int, heads: int, dim: int) -> Made:
    """Twice as many query heads as keys and values."""

    def forward(s: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (m(x).view(n, t, -1, dim).transpose(1, 2) for m in (s.q, s.k, s.v))
        if order == 0:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        elif order == 1:
            times = q.shape[1] // k.shape[1]  # of a single head, as many as there are queries
            k, v = (p[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for p in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=order == 2)
        mixed: Tensor = x + s.o(out.transpose(1, 2).flatten(2))
        return mixed

    wide = {"q": nn.Linear(c, 2 * heads * dim), "o": nn.Linear(2 * heads * dim, c)}
    return Step(forward, **wide, k=nn.Linear(c, heads * dim), v=nn.Linear(c, heads * dim)), c


def _norm_tokens(c: int, kind: int) -> Made:
    return [nn.LayerNorm(c), nn.RMSNorm(c)][kind], c


def _residual_tokens(c: int, plan: Plan) -> Made:
    inner, width = _sequence(TOKENS, plan, c)
    return Step(lambda s, x: x + s.back(s.inner(x)), inner=inner, back=nn.Linear(width, c)), c


def _dense_tokens(c: int, plan: Plan, order: int) -> Made:
    inner, width = _sequence(TOKENS, plan, c)
    return Step(lambda s, x: torch.cat([x, s.inner(x)][::order], 2), inner=inner), c + width


def _heads_max(c: int, heads: int, dim: int) -> Made:
    return Step(lambda s, x: s.a(x).unflatten(2, (-1, dim)).amax(3), a=nn.Linear(c, heads * dim)), heads


def _recurrent(c: int, kind: int, size: int, both: bool) -> Made:
    options: dict[str, Any] = {"batch_first": True, "bidirectional": both}
    if kind == 3:
        layer: nn.Module = nn.LSTM(c, size + 3, proj_size=size, **options)
    else:
        layer = [nn.GRU, nn.LSTM, nn.RNN][kind](c, size, **options)
    return Step(lambda s, x: s.a(x)[0], a=layer), size * (1 + both)


def _cell(c: int, kind: int, size: int) -> Made:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.tanh(s.i(x[:, 0]))
        state, out = (h, torch.zeros_like(h)) if kind == 1 else h, []
        for t in range(STEPS):
            state = s.r(x[:, t], state)
            out.append(state[0] if kind == 1 else state)
        return torch.stack(out, 1)

    return Step(forward, i=nn.Linear(c, size), r=[nn.GRUCell, nn.LSTMCell, nn.RNNCell][kind](c, size)), size


def _leaky(c: int) -> Made:
    """Spikes of a leaky neuron, written into a fresh tensor."""

    def forward(s: Any, x: Tensor) -> Tensor:
        out, state = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        for t in range(STEPS):
            state = s.leak * state + x[:, t]
            out[:, t] = (state > 0.5).to(x.dtype) + torch.tanh(state)
            state = torch.where(state > 0.5, torch.zeros_like(state), state)
        return out

    return Step(forward, leak=torch.rand(c)), c


def _position(c: int) -> Made:
    return Step(lambda s, x: x + s.p, p=torch.randn(1, STEPS, c)), c


def _time(c: int, size: int) -> Made:
    layers = {"a": nn.Linear(STEPS, size), "b": nn.Linear(size, STEPS)}
    return Step(lambda s, x: x + s.b(torch.relu(s.a(x.mT))).mT, **layers), c


def _conv_tokens(c: int, size: int) -> Made:
    layer = nn.Conv1d(c, size, 3, padding="same")
    return Step(lambda s, x: s.a(x.transpose(1, 2)).transpose(1, 2), a=layer), size


def _frames(c: int) -> Made:
    """Windows of two steps side by side."""
    return Step(lambda _, x: F.pad(x, (0, 0, 1, 0)).unfold(1, 2, 1).flatten(2)), 2 * c


def _prototypes(c: int, size: int) -> Made:
    return Step(lambda s, x: torch.exp(-torch.cdist(x, s.p)), p=torch.randn(size, c)), size


def _bilinear(c: int, size: int) -> Made:
    return Step(lambda s, x: torch.einsum("ntc,cdk,ntd->ntk", x, s.w, x), w=torch.randn(c, c, size) / c), size


def _complex(c: int) -> Made:
    """Pairs of channels turn as complex numbers."""

    def forward(s: Any, x: Tensor) -> Tensor:
        z = torch.view_as_complex(s.a(x).unflatten(2, (-1, 2))) * torch.polar(torch.ones_like(s.w), s.w)
        return torch.view_as_real(z).flatten(2)

    return Step(forward, a=nn.Linear(c, _even(c)), w=torch.randn(_even(c) // 2)), _even(c)


def _diagonal(c: int) -> Made:
    return Step(
        lambda s, x: x @ torch.diag_embed(s.d) + torch.cosine_similarity(x, s.d, -1)[..., None], d=torch.randn(c)
    ), c


def _move(c: int, kind: int) -> Made:
    moves: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.flip(2), lambda x: x.roll(1, 1), lambda x: x.flip(1), lambda x: F.normalize(x, dim=-1),
        lambda x: x.cumsum(1), lambda x: torch.fft.fft(x, dim=1).real, lambda x: x + x.mean(1, keepdim=True),
        lambda x: x[:, [2, 0, 1, 3]], lambda x: torch.stack(x.unbind(1)[::-1], 1), lambda x: x.sort(1).values,
        lambda x: x - x.logsumexp(2, keepdim=True), lambda x: x * torch.softmax(x, 2),
        lambda x: x.var(2, False, keepdim=True) * x,
    ]  # fmt: skip
    return Step(lambda _, x: moves[kind % len(moves)](x)), c


# -- plans -----------------------------------------------------------------------------------------------------------

Table = dict[str, Callable[..., Made]]
IMAGE: Table = {
    "conv": _conv, "norm": _norm, "act": lambda c, i: (Step(lambda _, x: ACTIVATIONS[i](x)), c),
    "prelu": lambda c: (nn.PReLU(c), c), "residual": _residual, "dense": _dense, "squeeze": _squeeze, "halves": _halves,
    "pad": _pad, "split": _split, "pool": _pool, "fourier": _fourier, "windows": _windows, "pixels": _pixels,
    "twice": _twice, "modulated": _modulated, "write": _write,
}  # fmt: skip
TOKENS: Table = {
    "linear": lambda c, out, bias: (nn.Linear(c, out, bias=bias), out), "norm": _norm_tokens, "act": IMAGE["act"],
    "residual": _residual_tokens, "dense": _dense_tokens, "attention": _attention, "grouped": _grouped_queries,
    "gate": lambda c: (Step(lambda s, x: _gate(s.a(x), 2), a=nn.Linear(c, _even(c))), _even(c) // 2),
    "heads-max": _heads_max, "recurrent": _recurrent, "cell": _cell, "leaky": _leaky, "position": _position,
    "time": _time, "conv": _conv_tokens, "frames": _frames, "prototypes": _prototypes, "bilinear": _bilinear,
    "complex": _complex, "diagonal": _diagonal, "move": _move,
}  # fmt: skip


def _sequence(table: Table, plan: Plan, c: int) -> tuple[nn.Sequential, int]:
    steps = []
    for name, *numbers in plan:
        step, c = table[name](c, *numbers)
        steps.append(step)
    return nn.Sequential(*steps), c


def _piece(*parts: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts))


_SIZES, _FLAGS, _HEADS = st.integers(2, 9), st.booleans(), st.integers(1, 3)
_ACT = _piece("act", st.integers(0, len(ACTIVATIONS) - 1))
_IMAGE = st.one_of(
    _piece("conv", _SIZES, st.integers(1, 4), st.integers(0, 1), _FLAGS, st.integers(0, 3)), _ACT,
    _piece("norm", st.integers(0, 4)), _piece("prelu"), _piece("squeeze"), _piece("split"), _piece("fourier"),
    _piece("halves", st.sampled_from(["shuffle", "gate", "glu", "channel-shuffle", "max"])), _piece("twice"),
    _piece("pad", st.integers(0, 2), st.integers(0, 2)), _piece("pool", st.integers(0, 11)), _piece("write"),
    _piece("windows", _SIZES), _piece("pixels", _SIZES), _piece("modulated", _SIZES),
)  # fmt: skip
_TOKENS = st.one_of(
    _piece("linear", _SIZES, _FLAGS), _piece("norm", st.integers(0, 1)), _ACT, _piece("leaky"), _piece("frames"),
    _piece("attention", st.integers(0, 3), st.integers(2, 4), _HEADS),
    _piece("grouped", st.integers(0, 2), st.integers(2, 3), _HEADS),
    _piece("gate"), _piece("heads-max", st.integers(2, 4), _HEADS), _piece("position"), _piece("complex"),
    _piece("recurrent", st.integers(0, 3), _SIZES, _FLAGS), _piece("cell", st.integers(0, 2), _SIZES),
    _piece("time", _SIZES), _piece("conv", _SIZES), _piece("move", st.integers(0, 12)), _piece("prototypes", _SIZES),
    _piece("bilinear", _SIZES), _piece("diagonal"),
)  # fmt: skip


def plans(kind: str) -> st.SearchStrategy[Plan]:
    """Two to six pieces, some of them with pieces inside."""
    single = _IMAGE if kind == "image" else _TOKENS
    inside = st.lists(single, min_size=1, max_size=3)
    nested = st.one_of(single, _piece("residual", inside), _piece("dense", inside, st.sampled_from([1, -1])))
    first = ("conv", 8, 1, 1, True, 0) if kind == "image" else ("linear", 8, True)
    return st.lists(nested, min_size=1, max_size=5).map(lambda rest: [first, *rest])


def example(kind: str) -> Tensor:
    """Two samples."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 3, 5, 5) if kind == "image" else (2, STEPS, 5), generator=generator)
