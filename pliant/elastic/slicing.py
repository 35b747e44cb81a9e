"""Slices: from kept counts to the part of each tensor that a sub-network uses."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core._torch_private import backward_pass, storage_users
from pliant.core.parts import Index, Runs, part_of, put
from pliant.graph.analyse import Axis
from pliant.graph.labels import IntArray

Ranges = tuple[tuple[int, int], ...]
"""Runs `[begin, end)` along one axis, ascending."""
Slice = tuple[Index, ...]
"""One entry for each axis of a tensor: a slice where one run is kept, `Runs` where they are regular, else an index."""


class Cut(tuple[Index, ...]):
    """A `Slice` of tensors of one shape that knows the view it is.

    Attributes:
        sizes: of the part; None where it is no view.
        begins: the first entry along each axis; empty where all are zero.
    """

    sizes: tuple[int, ...] | None
    begins: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[Index], shape: Sequence[int]) -> Self:
        """The cut of tensors of a shape; slices have steps of one."""
        cut = cls(entries)
        bounds = [e.indices(size) for e, size in zip(entries, shape, strict=True) if isinstance(e, slice)]
        cut.sizes = tuple(max(end - begin, 0) for begin, end, _ in bounds) if len(bounds) == len(entries) else None
        cut.begins = tuple(begin for begin, _, _ in bounds) if any(begin for begin, _, _ in bounds) else ()
        return cut

    def offset(self, stride: Sequence[int]) -> int:
        """Of the part's first entry in a tensor of these strides."""
        return sum(begin * step for begin, step in zip(self.begins, stride))


_LARGE = 1 << 17
"""Entries from which a parameter's gradient is worth a function and memory of its own."""


class AxisCuts:
    """The runs that stay along one elastic axis, remembered by the kept counts they depend on."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self.groups: list[int] = np.unique(axis.group[axis.group >= 0]).tolist()
        self._memo: dict[tuple[int, ...], Ranges] = {}
        self._entries: dict[tuple[int, ...], Index] = {}

    def _key(self, counts: IntArray) -> tuple[int, ...]:
        return tuple(map(counts.item, self.groups))

    def ranges(self, counts: IntArray) -> Ranges:
        """The runs that stay."""
        key = self._key(counts)
        if key not in self._memo:
            kept = np.concatenate([[False], self._axis.kept(counts), [False]]).astype(np.int8)
            edges = np.flatnonzero(np.diff(kept)).reshape(-1, 2)
            self._memo[key] = tuple((int(begin), int(end)) for begin, end in edges)
        return self._memo[key]

    def entry(self, counts: IntArray) -> Index:
        """A slice where one run stays, `Runs` where they are alike and evenly spaced, else the kept indices."""
        key = self._key(counts)
        if key not in self._entries:
            self._entries[key] = _entry(self.ranges(counts))
        return self._entries[key]


class StateCuts:
    """The cuts of one state tensor, remembered by the kept counts they depend on.

    Args:
        axes: the elastic ones.
        shape: of the whole tensor.
    """

    def __init__(self, axes: Mapping[int, AxisCuts], shape: Sequence[int]) -> None:
        self._axes, self._shape = axes, tuple(shape)
        self._groups = sorted({group for axis in axes.values() for group in axis.groups})
        self._memo: dict[tuple[int, ...], Cut] = {}

    def of(self, counts: IntArray) -> Slice:
        """The same object for the same counts; empty where no axis is elastic."""
        if not self._axes:
            return ()
        key = tuple(map(counts.item, self._groups))
        if key not in self._memo:
            kept = [self._axes[a].entry(counts) if a in self._axes else slice(None) for a in range(len(self._shape))]
            self._memo[key] = Cut.of(kept, self._shape)
        return self._memo[key]

    def ranges(self, counts: IntArray) -> list[Ranges | None]:
        """The runs that stay along each axis; None along those that are not elastic."""
        return [self._axes[a].ranges(counts) if a in self._axes else None for a in range(len(self._shape))]


def _entry(ranges: Ranges) -> Index:
    if len(ranges) == 1:
        return slice(*ranges[0])
    lengths = {end - begin for begin, end in ranges}
    steps = {after[0] - before[0] for before, after in pairwise(ranges)}
    if len(lengths) == len(steps) == 1:
        return Runs(ranges[0][0], lengths.pop(), steps.pop(), len(ranges))
    return torch.cat([torch.arange(begin, end) for begin, end in ranges])


def is_view(cut: Sequence[Index]) -> bool:
    """Whether `take` gives a view of a buffer."""
    return all(isinstance(entry, slice) for entry in cut)


class Gradients:
    """The memory of full-size gradients, kept from step to step.

    Fresh memory for the gradient of a slice would cost more than its numbers: the system has to find and clear every
    page. So one buffer for each parameter is used again once nobody else refers to it. Slices of one parameter that are
    used several times in one backward pass write into the same one.
    """

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gradients":
        return Gradients()

    def slot(self, parameter: Tensor) -> "_Slot":
        """The memory of one parameter."""
        return self._slots.setdefault(id(parameter), _Slot())

    def drop(self, parameter: Tensor) -> None:
        """Give the memory of one parameter back."""
        self._slots.pop(id(parameter), None)

    def clear(self) -> None:
        """Give the memory back; gradients that are still in use keep theirs."""
        self._slots.clear()


class _Slot:
    """Memory for the gradient of one parameter: free, or in use since backward pass `task`."""

    __slots__ = ("buffer", "task")

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.task = -1

    def add(self, part: Tensor, cut: Slice, like: Tensor) -> Tensor | None:
        """A tensor like `like` of zeros with `part` in its place.

        None where a gradient of the same backward pass, which autograd has not handed on yet, has taken it in.
        """
        task, buffer = backward_pass(), self.buffer
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (like.shape, part.dtype, part.device):
            buffer = self.buffer = torch.empty_like(like, dtype=part.dtype)
        elif storage_users(buffer) > 1:
            if self.task == task:
                put(buffer, cut, part, add=True)
                return None
            return put(torch.zeros_like(like, dtype=part.dtype), cut, part)
        self.task = task
        return put(buffer.detach().zero_(), cut, part)


def take(tensor: Tensor, cut: Sequence[Index], gradients: Gradients | None = None) -> Tensor:
    """The part of a tensor: a view where every entry is a slice, else a copy. Differentiable.

    Args:
        tensor: the whole.
        cut: an entry for each of its first axes; the others stay whole.
        gradients: where the gradients of parameters are made.
    """
    if (
        gradients is None
        or not tensor.requires_grad
        or not torch.is_grad_enabled()
        or not isinstance(tensor, nn.Parameter)  # a tensor of functional transforms
        or torch.compiler.is_compiling()
    ):
        return part_of(tensor, cut)
    if tensor.numel() < _LARGE:
        return _strided(tensor, cut) if isinstance(cut, Cut) and cut.sizes is not None else part_of(tensor, cut)
    if all(isinstance(e, slice) and e.indices(size) == (0, size, 1) for e, size in zip(cut, tensor.shape)):
        gradients.drop(tensor)  # its gradient will be autograd's own
        return tensor
    found: Tensor = _Take.apply(tensor, tuple(cut), gradients.slot(tensor))  # type: ignore[no-untyped-call]
    return found


def _strided(parameter: Tensor, cut: Cut) -> Tensor:
    """The view of a small parameter in one operation, whose gradient keeps the parameter's memory order; a chain of
    narrowed axes, each with a gradient of its own, takes several times as long."""
    sizes = cut.sizes or ()
    if sizes == parameter.shape:
        return parameter
    stride, offset = parameter.stride(), parameter.storage_offset()
    return parameter.as_strided(sizes, stride, offset + cut.offset(stride) if cut.begins else offset)


class _Take(torch.autograd.Function):
    """`part_of`, whose gradient is written in one go; that of chained slices is one tensor of zeros after another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, cut: Slice, slot: _Slot) -> Tensor:
        part = part_of(tensor, cut)
        # Gradients of matrices come out in the memory order of the matrix if that is contiguous.
        return part.contiguous() if tensor.dim() == 2 and 2 * part.numel() <= tensor.numel() else part

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Slice, _Slot], output: Tensor) -> None:
        ctx.like, ctx.cut, ctx.slot = inputs[0].detach(), *inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():  # a gradient of the gradient will be wanted
            return _Put.apply(grad, ctx.cut, ctx.like), None, None  # type: ignore[no-untyped-call]
        return ctx.slot.add(grad, ctx.cut, ctx.like), None, None


class _Put(torch.autograd.Function):
    """A tensor of zeros like `like` that holds `part` in its place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(part: Tensor, cut: Slice, like: Tensor) -> Tensor:
        return put(torch.zeros_like(like, dtype=part.dtype), cut, part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Slice, Tensor], output: Tensor) -> None:
        ctx.cut = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return part_of(grad, ctx.cut), None, None
