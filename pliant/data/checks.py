"""Raw values to tensors, and one clear error for each kind of bad data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.core import PliantError


def to_tensor(value: Any, where: str) -> Tensor:
    """A CPU tensor of uint8 (kept), float32 (any floating type) or int64 (any other integer type and bool).

    Raises:
        PliantError: strings, Python objects, complex numbers, or ragged lists.
    """
    tensor = (value if isinstance(value, Tensor) else _numeric(value, where)).detach().cpu()
    if tensor.is_complex():
        raise PliantError(f"complex numbers ({tensor.dtype})", where=where, fix="give real numbers")
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor if tensor.dtype == torch.uint8 else tensor.to(torch.int64)


def _numeric(value: Any, where: str) -> Tensor:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise PliantError(f"no rectangular array ({error})", where=where, fix="pad or resize the samples") from error
    if array.dtype.kind not in "biufc":
        kind = "Python objects" if array.dtype.kind == "O" else f"{array.dtype} values"
        raise PliantError(f"{kind} instead of numbers", where=where, fix="convert to a float32, int64 or uint8 array")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))  # a copy: the caller's array may be read-only, or change later


def check_inputs(x: Tensor, where: str) -> Tensor:
    """`x`, when it is [n >= 1, ...], finite, and without negative tokens.

    Raises:
        PliantError: naming the first bad sample.
    """
    if x.ndim < 2:
        raise PliantError(f"shape {tuple(x.shape)} has no feature axis", where=where, fix="give [samples, features...]")
    if x.numel() == 0:
        raise PliantError(f"empty (shape {tuple(x.shape)})", where=where, fix="give at least one sample")
    if x.is_floating_point():
        _finite(x, where)
    elif x.dtype == torch.int64 and int(x.min()) < 0:
        place = _first(x < 0)
        fix = "integers are read as tokens from 0; give numbers as float32"
        raise PliantError(f"token {int(x[tuple(place)])} at index {place}", where=where, fix=fix)
    return x


def _first(bad: Tensor) -> list[int]:
    flat = int(bad.flatten().to(torch.uint8).argmax())
    return [int(i) for i in np.unravel_index(flat, tuple(bad.shape))]


def _finite(x: Tensor, where: str) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        place = _first(~finite)
        count = int((~finite).sum())
        problem = f"{x[tuple(place)].item()} at index {place} ({count} values in all are NaN or infinite)"
        raise PliantError(problem, where=where, fix="drop or fill them first")


def encode_names(parts: Sequence[Any], order: Sequence[str] | None = None) -> tuple[list[Tensor], tuple[str, ...]]:
    """String labels of several splits as int64 class numbers, and the sorted class names.

    Args:
        parts: arrays of strings.
        order: the class names in the order wanted; sorted names by default.
    """
    arrays = [np.asarray(part).astype(str) for part in parts]
    names = list(order) if order is not None else sorted({str(name) for array in arrays for name in np.unique(array)})
    number = {name: index for index, name in enumerate(names)}
    coded = [torch.tensor([number[str(name)] for name in array.ravel()], dtype=torch.int64) for array in arrays]
    return coded, tuple(names)


def check_labels(parts: dict[str, Tensor], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Class names for integer labels.

    Args:
        parts: place -> int64 labels of any shape.
        classes: names where they are known; labels must then be below their number.

    Returns:
        `classes`, or the numbers as text.

    Raises:
        PliantError: a negative label, a label beyond the known classes, or a gap in 0..C-1.
    """
    present = torch.unique(torch.cat([labels.flatten() for labels in parts.values()]))
    count = len(classes) if classes is not None else int(present.max()) + 1
    rule = f"labels must be 0..{count - 1}" if classes is not None else "labels must be 0..C-1"
    for where, labels in parts.items():
        bad = (labels < 0) | (labels >= count)
        if bool(bad.any()):
            place = _first(bad)
            raise PliantError(f"label {int(labels[tuple(place)])} at index {place}", where=where, fix=rule)
    if classes is not None:
        return tuple(classes)
    gaps = (present != torch.arange(len(present))).nonzero()
    for where, labels in parts.items():
        missing = int(gaps[0]) if len(gaps) else count
        above = labels > missing
        if bool(above.any()):
            place = _first(above)
            problem = f"label {int(labels[tuple(place)])} at index {place}, but label {missing} never occurs"
            raise PliantError(problem, where=where, fix="number the classes 0..C-1 without gaps, or give strings")
    return tuple(str(number) for number in range(count))


def check_targets(y: Tensor, where: str) -> Tensor:
    """Targets as int64 labels [n, ...] or float32 values [n, k].

    Integer columns [n, 1] become [n]; float vectors [n] become [n, 1], the shape a network's output has.

    Raises:
        PliantError: empty or scalar targets, NaN or infinity.
    """
    if y.ndim == 0 or y.numel() == 0:
        raise PliantError(f"empty (shape {tuple(y.shape)})", where=where, fix="give one target per sample")
    if y.is_floating_point():
        _finite(y, where)
        return y[:, None] if y.ndim == 1 else y
    y = y.to(torch.int64)
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def check_lengths(inputs: int, targets: int, where: str) -> None:
    """Raises `PliantError` unless there are as many targets as inputs."""
    if inputs != targets:
        raise PliantError(f"{inputs} inputs but {targets} targets", where=where, fix="give one target per sample")
