"""Block-triangular products that leave out most of what is zero."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pliant.graph.labels import IntArray

ROWS = 32
"""Outputs that are worth a product of their own: with fewer, calls cost more than the zeros they leave out."""
ENTRIES = 8192
"""Entries of the smallest matrix that is worth it."""


class Band(NamedTuple):
    """Outputs `begin` to `end` of a linear operator, which read inputs up to `reads`."""

    begin: int
    end: int
    reads: int


def bands_of(into: IntArray, out_of: IntArray) -> list[Band] | None:
    """How the outputs of a block-triangular matrix fall apart; None where a single product is as good.

    Args:
        into: the shell of every input.
        out_of: the shell of every output; those of a shell may lie in several places, as in one matrix for queries,
            keys and values.
    """
    if (np.diff(into) < 0).any() or len(into) * len(out_of) < ENTRIES:
        return None
    inputs = np.searchsorted(into, out_of, side="right")
    found: list[Band] = []
    begin = 0
    for i in range(1, len(inputs) + 1):
        last = i == len(inputs)
        if last or inputs[i] < inputs[i - 1] or (inputs[i] > inputs[i - 1] and i - begin >= ROWS):
            found.append(Band(begin, i, int(inputs[i - 1])))
            begin = i
    read = sum((band.end - band.begin) * band.reads for band in found)
    small = any(band.end - band.begin < ROWS or not band.reads for band in found)
    return None if small or read > 0.9 * len(into) * len(out_of) else found


def fits(x: Tensor) -> bool:
    """Whether products in bands are faster: elsewhere parts of a matrix cost as much as all of it."""
    full = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and full and not torch.is_autocast_enabled("cpu")


class BandedLinear(torch.autograd.Function):
    """`F.linear(x, weight * mask, bias)` band by band; the gradient of x goes back through `weight * mask * back`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, back: Tensor | None,
                bands: Sequence[Band]) -> Tensor:  # fmt: skip
        """x [..., I], weight and mask [O, I] -> [..., O]; `back` [O, I], None for 1; `bands` of `bands_of`."""
        rows, masked = x.reshape(-1, x.shape[-1]), weight * mask
        ctx.save_for_backward(x, masked, mask, back)
        ctx.bands, ctx.biased = bands, bias is not None
        made = rows.new_empty(len(rows), len(weight))
        for begin, end, reads in bands:
            part, own = rows[:, :reads], masked[begin:end, :reads].t()
            if bias is None:
                torch.mm(part, own, out=made[:, begin:end])
            else:
                torch.addmm(bias[begin:end], part, own, out=made[:, begin:end])
        return made.reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight, mask, back = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(math.prod(grad.shape[:-1]), -1)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _back(grads, weight if back is None else weight * back, ctx.bands).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            for begin, end, reads in ctx.bands:
                torch.mm(grads[:, begin:end].t(), rows[:, :reads], out=of_weight[begin:end, :reads])
            of_weight.mul_(mask)
        return of_x, of_weight, grads.sum(0) if ctx.biased else None, None, None, None


def _back(grads: Tensor, weight: Tensor, bands: Sequence[Band]) -> Tensor:
    """`grads @ weight`: what every stretch of inputs gets from the bands that read it."""
    made = grads.new_empty(len(grads), weight.shape[1])
    begin = 0
    for end in sorted({band.reads for band in bands} | {weight.shape[1]}):
        part, first = made[:, begin:end], True
        for rows in _stretches(bands, end):
            if first:
                torch.mm(grads[:, rows], weight[rows, begin:end], out=part)
            else:
                part.addmm_(grads[:, rows], weight[rows, begin:end])
            first = False
        if first:
            part.zero_()  # nothing reads these
        begin = end
    return made


def _stretches(bands: Sequence[Band], reads: int) -> list[slice]:
    """Outputs that read up to an input at least, neighbours together."""
    found: list[slice] = []
    for band in bands:
        if band.reads >= reads:
            if found and found[-1].stop == band.begin:
                found[-1] = slice(found[-1].start, band.end)
            else:
                found.append(slice(band.begin, band.end))
    return found
