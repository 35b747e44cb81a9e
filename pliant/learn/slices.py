"""Optimizer steps that move only slices of parameters, for any torch optimizer.

For the time of `optimizer.step()` each sliced parameter *is* its slice: `p.data`, `p.grad` and every state tensor of
the parameter's shape are exchanged for views of their slice (copies that are written back where an axis is indexed by
a tensor), so that whatever the optimizer does, decay and momentum included, it cannot reach anything else.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.core.parts import Index, Runs, part_of, put, view

Slices = Mapping[nn.Parameter, tuple[Index, ...]]
"""For each parameter an entry per axis: a slice with a positive step, `Runs`, or an int64 vector without repetition."""

_ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
"""torch's optimizers that treat every entry alone, so that the axes of a parameter do not matter to them."""
_REMEMBERED = 64
"""Slices of one parameter whose views are kept from step to step; making them anew takes longer than a small step."""
_parts: WeakKeyDictionary[torch.optim.Optimizer, dict[nn.Parameter, dict[int, "_Part"]]] = WeakKeyDictionary()
"""For each parameter of an optimizer its slices by the `id` of their index, which the part keeps alive."""
_REFUSED = {"LBFGS": "it steps all parameters as one vector", "Rprop": "its step sizes do not start at zero"}


def step_slices(optimizer: torch.optim.Optimizer, slices: Slices) -> None:
    """One `optimizer.step()` that moves each parameter in `slices` only inside its slice.

    Parameters and their optimizer state outside the slices stay bit-identical; the state stays full-size and is zero
    where it was never used. Inside, the step equals that of an optimizer which holds just the slice. Parameters that
    are not in `slices` are stepped whole if they have a gradient. State that is one number for a whole parameter
    (Adam's step count) counts every step of the parameter, whichever slice it moved.

    Args:
        optimizer: SGD, Adam, AdamW, RMSprop or any other whose per-parameter state tensors have the parameter's shape.
        slices: one entry per axis. Several index vectors mean their outer product.

    Raises:
        ValueError: a tuple that has not one entry per axis.
        TypeError: an entry that is neither a slice nor an int64 vector.
        PliantError: an optimizer whose state cannot be sliced (LBFGS, Rprop, Adafactor).
    """
    reason = _REFUSED.get(type(optimizer).__name__)
    if reason is not None:
        raise PliantError(f"{type(optimizer).__name__} cannot step slices: {reason}", fix="use AdamW, Adam or SGD")
    swaps = [swap for group in optimizer.param_groups for swap in _swaps(optimizer, group, slices)]
    entered: list[_Swap] = []
    try:
        for swap in swaps:
            swap.enter()
            entered.append(swap)
        optimizer.step()
    finally:
        for swap in entered:
            swap.leave()
    for swap in swaps:
        if swap.odd is not None:
            raise _unsliceable(optimizer, swap.odd)


def _swaps(optimizer: torch.optim.Optimizer, group: dict[str, Any], slices: Slices) -> list["_Swap"]:
    # Fused kernels walk the memory as if it were contiguous, which a view of a slice is not.
    gather = bool(group.get("fused"))
    elementwise = type(optimizer).__module__.startswith("torch.optim.") and type(optimizer).__name__ in _ELEMENTWISE
    remembered = _parts.setdefault(optimizer, {})
    found = []
    for parameter in group["params"]:
        index = slices.get(parameter) if parameter.grad is not None else None
        if index is None:
            continue
        part = _part(remembered.setdefault(parameter, {}), parameter, index, gather, elementwise)
        if part is None:
            continue
        full = {k: v for k, v in optimizer.state.get(parameter, {}).items() if isinstance(v, Tensor) and v.dim()}
        for key, value in full.items():
            if value.shape != part.shape:
                raise _unsliceable(optimizer, key)
        found.append(_Swap(optimizer, parameter, part, full))
    return found


def _part(
    remembered: dict[int, "_Part"], parameter: nn.Parameter, index: tuple[Index, ...], gather: bool, elementwise: bool
) -> "_Part | None":
    """A slice of a parameter, remembered or new; None where it is all of it."""
    part = remembered.get(id(index))
    if part is not None and part.fits(parameter, gather):
        return None if part.whole else part
    if part is not None:  # the parameter lies elsewhere by now, and views of its old memory would keep that alive
        remembered.clear()
    while len(remembered) >= _REMEMBERED:
        del remembered[next(iter(remembered))]
    copied = gather or (not elementwise and any(isinstance(entry, Runs) for entry in index))
    part = remembered[id(index)] = _Part(parameter.data, index, gather=gather, copied=copied)
    return None if part.whole else part


def _unsliceable(optimizer: torch.optim.Optimizer, key: str) -> PliantError:
    name = type(optimizer).__name__
    problem = f"{name} keeps a state {key!r} that has not its parameter's shape, so that it cannot step slices"
    return PliantError(problem, fix="use AdamW, Adam or SGD")


def _whole(parameter: Tensor, index: tuple[Index, ...]) -> bool:
    if len(index) != parameter.dim():
        shape = tuple(parameter.shape)
        raise ValueError(f"a parameter of shape {shape} needs {len(shape)} slices, one per axis; got {len(index)}")
    whole = True
    for size, entry in zip(parameter.shape, index):
        if isinstance(entry, slice):
            begin, end, step = entry.start, entry.stop, entry.step
            whole = whole and not begin and (end is None or end >= size) and (step is None or step == 1)
        elif isinstance(entry, Runs) or (isinstance(entry, Tensor) and entry.dtype == torch.int64 and entry.dim() == 1):
            whole = False
        else:
            got = f"{entry.dtype} tensor" if isinstance(entry, Tensor) else type(entry).__name__
            raise TypeError(f"an axis takes a slice or an int64 vector, got a {got} of {entry!r}")
    return whole


class _Part:
    """The slice of tensors like `full`: a view where no axis is a vector, else a copy that `store` writes back."""

    __slots__ = ("copied", "full", "gather", "index", "offset", "shape", "size", "stride", "views", "whole")

    def __init__(self, full: Tensor, index: tuple[Index, ...], *, gather: bool, copied: bool) -> None:
        self.whole = _whole(full, index)
        self.copied = copied or any(isinstance(entry, Tensor) for entry in index)
        self.index, self.full, self.shape, self.gather = index, full, full.shape, gather
        self.views: dict[str, tuple[Tensor, Tensor]] = {}
        if not self.copied:
            part = view(full, index)
            self.size, self.stride = part.shape, part.stride()
            self.offset = part.storage_offset() - full.storage_offset()

    def fits(self, parameter: Tensor, gather: bool) -> bool:
        """Whether the parameter still lies where it did, and is to be stepped in the same way."""
        full = self.full
        return (
            full.data_ptr() == parameter.data_ptr()
            and full.stride() == parameter.stride()
            and full.dtype == parameter.dtype
            and self.shape == parameter.shape
            and self.gather == gather
        )

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor of the parameter's shape."""
        if self.copied:
            return part_of(tensor, self.index).clone(memory_format=torch.contiguous_format)
        if tensor.stride() != self.full.stride():
            return view(tensor, self.index)
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)

    def kept(self, key: str, tensor: Tensor) -> Tensor:
        """The slice of a tensor that is there in every step: its view is made once."""
        known = self.views.get(key)
        if known is not None and known[0] is tensor:
            return known[1]
        part = self.of(tensor)
        if not self.copied:
            self.views[key] = tensor, part
        return part

    def store(self, tensor: Tensor, part: Tensor) -> None:
        """Write a slice into its place."""
        if self.copied:
            put(tensor, self.index, part)
        else:
            view(tensor, self.index).copy_(part)


class _Swap:
    """One parameter that is its slice between `enter` and `leave`."""

    __slots__ = ("full", "grad", "odd", "optimizer", "parameter", "part", "small")

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, part: _Part, full: dict[str, Tensor]
    ) -> None:
        self.optimizer, self.parameter, self.part, self.full = optimizer, parameter, part, full
        self.grad = parameter.grad
        self.small: dict[str, Tensor] = {}
        self.odd: str | None = None

    def enter(self) -> None:
        parameter, part = self.parameter, self.part
        # Everything that can fail comes before the first change.
        data, grad = part.kept("", part.full), None if self.grad is None else part.of(self.grad)
        self.small = {key: part.kept(key, value) for key, value in self.full.items()}
        parameter.grad = None  # torch refuses a gradient of another shape, so data goes first
        parameter.data = data
        parameter.grad = grad
        if self.small:
            self.optimizer.state[parameter].update(self.small)

    def leave(self) -> None:
        """Put the full tensors back. Never raises for odd state: the other parameters must be put back too."""
        parameter, part = self.parameter, self.part
        shape = parameter.data.shape
        if part.copied:
            part.store(part.full, parameter.data)
        parameter.grad = None
        parameter.data = part.full
        parameter.grad = self.grad
        state = self.optimizer.state.get(parameter) or {}
        for key, value in list(state.items()):
            if not isinstance(value, Tensor) or not value.dim():
                continue
            full = self.full.get(key)
            if full is None and value.shape == shape:
                full = torch.zeros_like(part.full, dtype=value.dtype, device=value.device)
            if full is None:
                self.odd = key
                continue
            # Optimizers that work in place have written through the view already.
            if part.copied or value is not self.small.get(key):
                part.store(full, value)
            state[key] = full
