"""What a one-pass network computes otherwise than the network it was built from."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pliant.graph.ir import Node, argument

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Input, weight and bias to their linear operator's result."""


def applied(function: type[torch.autograd.Function], *operands: Any) -> Tensor:
    """`function.apply`, which torch leaves without types."""
    apply: Callable[..., Tensor] = function.apply
    return apply(*operands)


# -- normalisation ---------------------------------------------------------------------------------------------------


class _Parts:
    """Entries by shell: [..., S, W / S] where shells are even and in order, else through products with 0 and 1."""

    def __init__(self, shells: Tensor, even: bool) -> None:
        self.shells, self.even = shells, even

    def of(self, x: Tensor) -> Tensor:
        """Entries [..., W] as the other methods take them."""
        return x.reshape(*x.shape[:-1], len(self.shells), -1) if self.even else x

    def joined(self, x: Tensor) -> Tensor:
        """The inverse of `of`."""
        return x.flatten(-2) if self.even else x

    def sums(self, x: Tensor) -> Tensor:
        """Sums over every shell, [..., S]."""
        return x.sum(-1) if self.even else x @ self.shells.t()

    def squares(self, x: Tensor) -> Tensor:
        """Sums of squares over every shell, [..., S]."""
        return torch.linalg.vector_norm(x, dim=-1).square() if self.even else (x * x) @ self.shells.t()

    def spread(self, values: Tensor) -> Tensor:
        """One value for each shell, to be broadcast to the entries."""
        return values.unsqueeze(-1) if self.even else values @ self.shells

    def _sizes(self) -> Tensor | float:
        return self.shells.shape[1] / len(self.shells) if self.even else self.shells.sum(1)

    def normalised(self, x: Tensor, shares: Tensor, eps: float | None, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised entries; means of the prefixes, less an offset that all share, and their reciprocal deviations."""
        x, sizes = self.of(x), self._sizes()
        if centred:
            own = self.sums(x) / sizes
            x = x - self.spread(own)
            own = own - own[..., :1]  # means are alike, and the square of what they share would swallow the differences
            mean = own @ shares
            variance = (self.squares(x) / sizes + own * own) @ shares - mean * mean
        else:
            own = mean = x.new_zeros(())
            variance = (self.squares(x) / sizes) @ shares
        scale = torch.rsqrt(variance.clamp_min(0) + (torch.finfo(x.dtype).eps if eps is None else eps))
        own_memory = centred and not torch.is_grad_enabled()  # fresh memory costs as much as a pass over it
        y = x.mul_(self.spread(scale)) if own_memory else x * self.spread(scale)
        return self.joined(y.add_(self.spread((own - mean) * scale)) if centred else y), mean, scale


def prefix_norm(x: Tensor, shells: Tensor, shares: Tensor, weight: Tensor | None, bias: Tensor | None,
                eps: float | None, centred: bool, even: bool) -> Tensor:  # fmt: skip
    """Layer or RMS normalisation in which every shell is normalised by the statistics of its own prefix.

    For unit i of shell j, with the mean m_j and the mean square q_j over the units of shells 1 to j:
    y_i = (x_i - m_j) / sqrt(q_j - m_j^2 + eps) * weight_i + bias_i, without m_j where not `centred`.

    Args:
        x: float [..., W].
        shells: [S, W], 1 where a unit is in a shell.
        shares: [S, S], what share of prefix j shell s <= j is, at [s-1, j-1]; else 0.
        weight, bias: float [W] or None.
        eps: added to the variance; None takes the smallest step of the type.
        centred: whether the mean is taken off.
        even: whether all shells have one size and come one after the other.

    Returns:
        [..., W] in the precision of `shares`.
    """
    with _in_full(x):
        y, _, _ = _Parts(shells, even).normalised(x.to(shares.dtype), shares, eps, centred)
        return affine(y, weight, bias)


def _in_full(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast: sums of squares need all their digits."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y * weight + bias, of what is there."""
    if weight is not None and bias is not None:
        return (y * weight).add_(bias)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class PrefixNorm(torch.autograd.Function):
    """`prefix_norm` with a backward pass written by hand, which takes a third of the time.

    `back` is `shares` by units, as gradients see it: what shell j reads from earlier shells is scaled by the leak.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shells: Tensor, shares: Tensor, back: Tensor, weight: Tensor | None,
                bias: Tensor | None, settings: tuple[float | None, bool, bool]) -> Tensor:  # fmt: skip
        """As `prefix_norm`; settings are its eps, centred and even."""
        eps, centred, even = settings
        parts = _Parts(shells, even)
        with _in_full(x):
            y, mean, scale = parts.normalised(x.to(shares.dtype), shares, eps, centred)
            ctx.save_for_backward(y, mean, scale, back, weight)
            ctx.parts, ctx.centred, ctx.dtype, ctx.biased = parts, centred, x.dtype, bias is not None
            return affine(y, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With grad_i that of y before the affine part, its sums a_j and those b_j of grad * y over shell j, reciprocal
        deviations r_j and n_j units in prefix j:
        dx_i = r_s grad_i - sum over j >= s of (r_j a_j + r_j^2 (x_i - m_j) b_j) / n_j, where s is the shell of i."""
        y, mean, scale, back, weight = ctx.saved_tensors
        parts: _Parts = ctx.parts
        product, rows = grad * y, tuple(range(grad.dim() - 1))
        of_bias = grad.sum(rows) if ctx.biased else None
        of_weight = None if weight is None else product.sum(rows)
        # Sums over shells with the weights in them: one pass less, and no memory.
        gathered = (parts.shells if weight is None else parts.shells * weight).t()
        b = (product @ gathered) * scale * scale
        a = grad @ gathered if ctx.centred else None
        through = b @ back.t()
        result = parts.of(grad.clone() if weight is None else torch.mul(grad, weight, out=product))
        result.mul_(parts.spread(scale)).addcmul_(parts.of(y), parts.spread(-through / scale))
        if a is not None:
            result.add_(parts.spread((b * mean - a * scale) @ back.t() - mean * through))
        return parts.joined(result).to(ctx.dtype), None, None, None, of_weight, of_bias, None


# -- linear operators ------------------------------------------------------------------------------------------------


def joined(weights: Tensor, axis: int) -> Tensor:
    """Weights of all widths [S, ...] as one, with their outputs one after the other along the one's `axis`."""
    return weights.movedim(0, axis).flatten(axis, axis + 1)


def product_of(node: Node) -> Product:
    """A linear operator as a function of its input, its weight (in the layout it has there) and its bias."""
    packet = node.packet.removeprefix("aten.").partition(".")[0]
    if packet == "linear":
        return F.linear
    if packet in ("matmul", "mm", "addmm"):
        return lambda x, w, b: F.linear(x, w.t(), b)
    names = ["stride", "padding", "dilation", "groups"]
    if "transpose" in packet:
        names = ["stride", "padding", "output_padding", "groups", "dilation"]
    defaults = {"padding": 0, "output_padding": 0}
    settings = [argument(node, name, defaults.get(name, 1)) for name in names]
    convolution: Callable[..., Tensor] = getattr(F, packet.replace(".input", ""))
    return lambda x, w, b: convolution(x, w, b, *settings)


def convolution_settings(node: Node) -> tuple[Any, ...] | None:
    """Stride, padding, dilation, transposed, output padding and groups of a convolution; None of anything else."""
    packet = node.packet.removeprefix("aten.")
    padding = argument(node, "padding", 0)
    if not packet.startswith("conv") or isinstance(padding, str):
        return None
    dims = int(next(letter for letter in packet if letter.isdigit()))

    def spread(value: Any) -> list[int]:
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * dims if len(values) == 1 else values

    transposed = "transpose" in packet
    numbers = (spread(argument(node, name, default)) for name, default in (("stride", 1), ("padding", 0)))
    dilation, output = spread(argument(node, "dilation", 1)), spread(argument(node, "output_padding", 0))
    return (*numbers, dilation, transposed, output, argument(node, "groups", 1))


def leaking(product: Product, x: Tensor, weight: Tensor, back: Tensor, settings: tuple[Any, ...] | None) -> Tensor:
    """`product(x, weight, None)` in which the gradient of `x` goes back through `weight * back`.

    Args:
        product: the linear operator.
        x, weight: its operands.
        back: factors between 0 and 1, broadcast to the weight.
        settings: `convolution_settings`.
    """
    if product is F.linear:
        return applied(LeakingLinear, x, weight, back)
    if settings is not None:
        return applied(LeakingConvolution, x, weight, back, product, settings)
    seen = product(x, (weight * back).detach(), None)  # its value is taken off again: it is there for its gradient
    return product(x.detach(), weight, None) + (seen - seen.detach())


class LeakingLinear(torch.autograd.Function):
    """`leaking` for `F.linear`, at no additional cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, back: Tensor) -> Tensor:
        """x [..., I] and weight [O, I] -> [..., O]."""
        ctx.save_for_backward(x, weight, back)
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x, through `weight * back`, and of the weight."""
        x, weight, back = ctx.saved_tensors
        through = (weight * back).to(grad.dtype)
        rows = math.prod(grad.shape[:-1])
        of_weight = grad.reshape(rows, -1).t() @ x.to(grad.dtype).reshape(rows, -1)
        return (grad @ through).to(x.dtype), of_weight.to(weight.dtype), None


class LeakingConvolution(torch.autograd.Function):
    """`leaking` for convolutions whose paddings are numbers, at no additional cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, back: Tensor, product: Product,
                settings: tuple[Any, ...]) -> Tensor:  # fmt: skip
        """The convolution, without a bias."""
        ctx.save_for_backward(x, weight, back)
        ctx.settings = settings
        return product(x, weight, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients of x, through `weight * back`, and of the weight."""
        x, weight, back = ctx.saved_tensors
        input_, plain, through = (tensor.to(grad.dtype) for tensor in (x, weight, weight * back))
        run = torch.ops.aten.convolution_backward.default
        of_x = run(grad, input_, through, None, *ctx.settings, (True, False, False))[0]
        of_weight = run(grad, input_, plain, None, *ctx.settings, (False, True, False))[1]
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None, None, None


# -- heads -----------------------------------------------------------------------------------------------------------


def prefix_heads(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Sequence[int]) -> Tensor:
    """A head of its own on every prefix: column k is `x[..., :ends[k]] @ weight[k, :, :ends[k]].T + bias[k]`.

    Neither the entries that a width does not read are multiplied with zeros, nor are results turned: columns lie one
    after the other in memory, as losses read them.

    Args:
        x: float [..., W].
        weight: float [S, C, W].
        bias: float [S, C] or None.
        ends: S sizes of prefixes.

    Returns:
        [S, ..., C].
    """
    x, weight, bias = _cast(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    made = rows.new_empty(len(weight), len(rows), weight.shape[1])
    with _in_full(x):
        for k, end in enumerate(ends):
            part, own = rows[:, :end], weight[k, :, :end].t()
            if bias is None:
                torch.mm(part, own, out=made[k])
            else:
                torch.addmm(bias[k], part, own, out=made[k])
    return made.reshape(len(weight), *x.shape[:-1], -1)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the type in which autocast would multiply."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class PrefixHeads(torch.autograd.Function):
    """`prefix_heads`; the gradient of x goes back through `weight * back`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor | None,
                ends: Sequence[int]) -> Tensor:  # fmt: skip
        """As `prefix_heads`; `back` is broadcast to the weight, None is 1."""
        ctx.save_for_backward(*_cast(x, weight, None)[:2], back)
        ctx.ends, ctx.dtypes, ctx.biased = ends, (x.dtype, weight.dtype), bias is not None
        with torch.no_grad():
            return prefix_heads(x, weight, bias, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight, back = ctx.saved_tensors
        (of_type, weight_type), shape = ctx.dtypes, x.shape
        rows, grads = x.reshape(-1, shape[-1]), grad.reshape(len(weight), -1, grad.shape[-1])
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            through = weight if back is None else (weight * back).to(weight.dtype)
            of_x = rows.new_zeros(rows.shape)
            for own, part, end in zip(grads, through, ctx.ends, strict=True):
                of_x[:, :end].addmm_(own, part[:, :end])
            of_x = of_x.reshape(shape).to(of_type)
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            for own, part, end in zip(grads, of_weight, ctx.ends, strict=True):
                part[:, :end] = own.t() @ rows[:, :end]
            of_weight = of_weight.to(weight_type)
        of_bias = grads.sum(1).to(weight_type) if ctx.biased else None
        return of_x, of_weight, of_bias, None, None


def summed_heads(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Sequence[int]) -> Tensor:
    """One head for all prefixes: a column adds its own shell to the one before, so that all cost what the last does.

    Args:
        x: float [..., W].
        weight: float [C, W].
        bias: float [S, C] or None.
        ends: S sizes of prefixes.

    Returns:
        [S, ..., C]; column k is `x[..., :ends[k]] @ weight[:, :ends[k]].T + bias[k]`.
    """
    x, weight, bias = _cast(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    made = rows.new_zeros(len(ends), len(rows), len(weight))
    with _in_full(x):
        for k, (begin, end) in enumerate(_shells(ends)):
            if k:
                torch.add(made[k - 1], 0 if bias is None else bias[k] - bias[k - 1], out=made[k])
            elif bias is not None:
                made[0] = bias[0]
            made[k].addmm_(rows[:, begin:end], weight[:, begin:end].t())
    return made.reshape(len(ends), *x.shape[:-1], -1)


def _shells(ends: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip((0, *ends), ends, strict=False))


class SummedHeads(torch.autograd.Function):
    """`summed_heads`; what goes back from a width to earlier shells than its own is scaled by the leak."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, leak: float, ends: Sequence[int]) -> Tensor:
        """As `summed_heads`."""
        ctx.save_for_backward(*_cast(x, weight, None)[:2])
        ctx.ends, ctx.leak, ctx.dtypes, ctx.biased = ends, leak, (x.dtype, weight.dtype), bias is not None
        with torch.no_grad():
            return summed_heads(x, weight, bias, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias: a shell gets what all columns from its own on send back."""
        x, weight = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(len(ctx.ends), -1, grad.shape[-1])
        of_x, of_weight = torch.empty_like(rows), torch.empty_like(weight)
        later: Tensor | None = None
        for own, (begin, end) in zip(reversed(grads.unbind()), reversed(_shells(ctx.ends)), strict=True):
            through = own if later is None else torch.add(own, later, alpha=ctx.leak)
            later = own if later is None else through if ctx.leak == 1 else own + later
            of_x[:, begin:end] = through @ weight[:, begin:end]
            of_weight[:, begin:end] = later.t() @ rows[:, begin:end]
        of_bias = grads.sum(1).to(ctx.dtypes[1]) if ctx.biased else None
        return of_x.reshape(x.shape).to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), of_bias, None, None
