"""Slices: from kept counts to the part of each tensor that a sub-network uses."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pliant.graph.analyse import Axis
from pliant.graph.labels import IntArray

Ranges = tuple[tuple[int, int], ...]
"""Runs `[begin, end)` along one axis, ascending."""
Slice = tuple[slice | Tensor, ...]
"""One entry for each axis of a tensor: a slice where one run is kept, else an int64 index."""


class AxisCuts:
    """The runs that stay along one elastic axis, remembered by the kept counts they depend on."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._groups = np.unique(axis.group[axis.group >= 0])
        self._memo: dict[tuple[int, ...], Ranges] = {}
        self._index: dict[tuple[int, ...], Tensor] = {}

    def _key(self, counts: IntArray) -> tuple[int, ...]:
        return tuple(counts[self._groups].tolist())

    def ranges(self, counts: IntArray) -> Ranges:
        """The runs that stay."""
        key = self._key(counts)
        if key not in self._memo:
            kept = np.concatenate([[False], self._axis.kept(counts), [False]]).astype(np.int8)
            edges = np.flatnonzero(np.diff(kept)).reshape(-1, 2)
            self._memo[key] = tuple((int(begin), int(end)) for begin, end in edges)
        return self._memo[key]

    def entry(self, counts: IntArray) -> slice | Tensor:
        """A slice where one run stays, else the kept indices."""
        ranges = self.ranges(counts)
        if len(ranges) == 1:
            return slice(*ranges[0])
        key = self._key(counts)
        if key not in self._index:
            self._index[key] = torch.cat([torch.arange(begin, end) for begin, end in ranges])
        return self._index[key]


def take(tensor: Tensor, cut: Sequence[slice | Tensor]) -> Tensor:
    """The part of a tensor: a view where every entry is a slice, else a copy. Differentiable."""
    for axis, entry in enumerate(cut):
        if isinstance(entry, slice):
            if entry.stop is not None and (entry.start, entry.stop) != (0, tensor.shape[axis]):
                tensor = tensor.narrow(axis, entry.start, entry.stop - entry.start)
        else:
            tensor = tensor.index_select(axis, entry.to(tensor.device))
    return tensor


def put(tensor: Tensor, cut: Sequence[slice | Tensor], part: Tensor) -> None:
    """Write a part back (the inverse of `take` where that copied)."""
    index = [
        torch.arange(tensor.shape[axis])[entry] if isinstance(entry, slice) else entry for axis, entry in enumerate(cut)
    ]
    tensor[tuple(torch.meshgrid(*[i.to(tensor.device) for i in index], indexing="ij"))] = part


def is_view(cut: Sequence[slice | Tensor]) -> bool:
    """Whether `take` gives a view."""
    return all(isinstance(entry, slice) for entry in cut)
