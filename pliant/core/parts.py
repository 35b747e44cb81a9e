"""Parts of tensors: what stays along each axis, and how to take it and put it back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """Indices of one axis in `count` runs of `length`, `step` apart, the first at `begin`: the same part of several
    blocks, such as the queries, keys and values in one matrix."""

    begin: int
    length: int
    step: int
    count: int

    def __len__(self) -> int:
        return self.length * self.count


Index = slice | Runs | Tensor
"""What stays along one axis: a slice with a positive step, `Runs`, or an int64 vector without repetition."""


def view(tensor: Tensor, index: Sequence[Index]) -> Tensor:
    """The view of a part, in which `Runs` become two axes (count and length).

    Args:
        tensor: the whole.
        index: slices and `Runs`, one for each of the first axes.
    """
    for axis in reversed(range(len(index))):  # from behind, so that an axis added does not move the others
        entry = index[axis]
        if isinstance(entry, Runs):
            tensor = tensor.narrow(axis, entry.begin, (entry.count - 1) * entry.step + entry.length)
            tensor = tensor.unfold(axis, entry.length, entry.step).movedim(-1, axis + 1)
        elif isinstance(entry, slice):
            begin, end, step = entry.indices(tensor.shape[axis])
            if step != 1:
                tensor = tensor[(*[slice(None)] * axis, entry)]
            elif (begin, end) != (0, tensor.shape[axis]):
                tensor = tensor.narrow(axis, begin, max(end - begin, 0))
        else:
            raise TypeError("an index vector has no view")
    return tensor


def part_of(tensor: Tensor, index: Sequence[Index]) -> Tensor:
    """The part, with as many axes as the whole: a view where every entry is a slice, else a copy. Differentiable."""
    if all(isinstance(entry, slice) for entry in index):
        return view(tensor, index)
    regular = [slice(None) if isinstance(entry, Tensor) else entry for entry in index]
    part = view(tensor, regular)
    if part.dim() > tensor.dim():
        part = part.reshape(shape_of(tensor, regular))
    for axis, entry in enumerate(index):
        if isinstance(entry, Tensor):
            part = part.index_select(axis, entry.to(part.device))
    return part


def shape_of(tensor: Tensor, index: Sequence[Index]) -> list[int]:
    """The shape of a part."""
    sizes = list(tensor.shape)
    for axis, entry in enumerate(index):
        sizes[axis] = len(range(*entry.indices(sizes[axis]))) if isinstance(entry, slice) else len(entry)
    return sizes


def put(tensor: Tensor, index: Sequence[Index], part: Tensor, *, add: bool = False) -> Tensor:
    """Write a part, of the shape that `part_of` gives it, into its place, or add it to what is there."""
    if any(isinstance(entry, Tensor) for entry in index):
        places = [part_of(torch.arange(size), [entry]) for size, entry in zip(tensor.shape, index)]
        places = [place.to(tensor.device) for place in places]
        return tensor.index_put_(torch.meshgrid(*places, indexing="ij"), part, accumulate=add)
    place = view(tensor, index)
    part = part.reshape(place.shape)
    place.add_(part) if add else place.copy_(part)
    return tensor
