"""From what the caller has to what the graph takes, with errors that say what to give."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.grammar import Preprocessing, Signature, Value

Array = NDArray[Any]


def arrays_of(inputs: Any, signature: Signature, *, preprocessed: bool) -> list[Array]:
    """The network's input arrays in the order of the signature.

    Args:
        inputs: an array, a tuple or a dict of arrays, as the signature's `call` says; anything numpy reads will do.
        signature: the artifact's.
        preprocessed: whether `inputs` are what the network itself takes; otherwise they are raw samples.

    Raises:
        TypeError: another container, or another dtype.
        ValueError: missing or unknown names, or another shape.
    """
    values = signature.inputs
    plain = signature.call == "tensor" and (preprocessed or signature.preprocessing is None)
    if plain and type(inputs) is np.ndarray and _is_ready(inputs, values[0], signature.lengths):
        return [inputs]  # soon: a small network takes microseconds itself
    given = _in_order(inputs, signature)
    if signature.preprocessing is not None and not preprocessed:
        return [_prepare(given[0], signature.preprocessing, values[0])]
    arrays = [_as_array(item, value.name, value.dtype) for item, value in zip(given, values, strict=True)]
    for array, value in zip(arrays, values, strict=True):
        _check_shape(array, value, signature.lengths)
    for size in ("N", *signature.lengths) if len(arrays) > 1 else ():
        _check_agreed(arrays, values, size)
    return arrays


def _check_agreed(arrays: list[Array], values: tuple[Value, ...], size: str) -> None:
    """Inputs have as many rows, and are as long, as each other where they have to be."""
    found: dict[int, str] = {}
    for array, value in zip(arrays, values, strict=True):
        for got, wanted in zip(array.shape, value.shape, strict=True):
            if wanted == size:
                found.setdefault(got, value.name)
    if len(found) > 1:
        what = "rows" if size == "N" else f"the length {size}"
        raise ValueError(f"inputs differ in {what}: {', '.join(f'{name} has {n}' for n, name in found.items())}")


_dtype = cache(np.dtype)


def _is_ready(array: Array, value: Value, lengths: Mapping[str, tuple[int, int]]) -> bool:
    """Whether an array is what a graph takes, as it is."""
    shape, wanted = array.shape, value.shape
    if lengths:
        fits = _fits(shape, wanted, lengths)
    else:
        fits = shape == wanted or (len(shape) == len(wanted) > 0 and shape[1:] == wanted[1:] and wanted[0] == "N")
    return fits and array.dtype == _dtype(value.dtype) and array.flags.c_contiguous


def _in_order(inputs: Any, signature: Signature) -> list[Any]:
    names = [value.name for value in signature.inputs]
    if signature.call == "tensor":
        if isinstance(inputs, Mapping | tuple):
            raise TypeError(f"this network takes one array, got a {type(inputs).__name__}")
        return [inputs]
    if signature.call == "tuple":
        if not isinstance(inputs, tuple | list) or len(inputs) != len(names):
            raise TypeError(f"this network takes a tuple of {len(names)} arrays, got {_kind(inputs)}")
        return list(inputs)
    if not isinstance(inputs, Mapping):
        raise TypeError(f"this network takes a dict with {', '.join(names)}, got {_kind(inputs)}")
    if set(inputs) != set(names):
        raise ValueError(f"this network takes {', '.join(names)}, got {', '.join(map(str, inputs)) or 'nothing'}")
    return [inputs[name] for name in names]


def _kind(inputs: Any) -> str:
    sized = isinstance(inputs, tuple | list)
    return f"{type(inputs).__name__} of {len(inputs)}" if sized else type(inputs).__name__


def _as_array(item: Any, name: str, dtype: str) -> Array:
    if not hasattr(item, "dtype"):
        try:
            plain = np.asarray(item)
        except ValueError as error:
            raise ValueError(f"input {name!r} is no regular array ({error})") from error
        # Python numbers have no width of their own; they may take the network's if no value changes kind.
        if plain.dtype.kind not in "iufb" or not np.can_cast(plain.dtype, np.dtype(dtype), "same_kind"):
            raise TypeError(f"input {name!r} takes {dtype}, got a {type(item).__name__} of {plain.dtype}")
        item = plain.astype(dtype)
    array = np.asarray(item)
    if array.dtype != np.dtype(dtype):
        raise TypeError(f"input {name!r} takes {dtype}, got {array.dtype}: convert it with .astype({dtype!r})")
    return np.ascontiguousarray(array)


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...], lengths: Mapping[str, tuple[int, int]]) -> bool:
    """Whether an array's shape is one of those that the signature allows; a length that occurs twice is the same."""
    if len(shape) != len(wanted):
        return False
    known: dict[str, int] = {}
    for got, size in zip(shape, wanted, strict=True):
        if isinstance(size, int):
            if got != size:
                return False
        elif size in lengths:
            least, most = lengths[size]
            if not least <= got <= most or known.setdefault(size, got) != got:
                return False
        elif size != "N":
            return False
    return True


def _check_shape(array: Array, value: Value, lengths: Mapping[str, tuple[int, int]]) -> None:
    if not _fits(array.shape, value.shape, lengths):
        used = {name: span for name, span in lengths.items() if name in value.shape}
        spans = [f"{name} goes from {least} to {most}" for name, (least, most) in used.items()]
        where = f" ({', '.join(spans)})" if spans else ""
        wanted = f"{_shape(value.shape)}{where}"
        raise ValueError(f"input {value.name!r} takes the shape {wanted}, got {_shape(array.shape)}")


def _shape(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _prepare(item: Any, info: Preprocessing, value: Value) -> Array:
    try:
        raw = _as_array(item, value.name, info.dtype)
    except TypeError as error:
        hint = f"raw samples are {info.dtype}; data that is prepared already needs preprocessed=True"
        raise TypeError(f"{error} ({hint})") from error
    if raw.ndim != len(info.shape) + 1 or raw.shape[1:] != info.shape:
        wanted = _shape(("N", *info.shape))
        raise ValueError(
            f"input {value.name!r} takes raw samples {wanted} (layout {info.layout}), got {_shape(raw.shape)}"
        )
    if info.layout != "NT":
        raw = apply(raw, info)
    prepared = np.ascontiguousarray(raw.astype(value.dtype, copy=False))
    _check_shape(prepared, value, {})
    return prepared


def apply(raw: Array, info: Preprocessing) -> Array:
    """Raw samples arranged, scaled and normalised: float32, channels or features on axis 1."""
    if info.layout == "NHW":
        raw = raw[:, None]
    if info.layout == "NHWC":
        raw = raw.transpose(0, 3, 1, 2)
    x: Array = np.array(raw, dtype=np.float32)
    if info.scale != 1.0:
        x /= np.float32(info.scale)
    if info.mean:
        axes = (1, -1) + (1,) * (x.ndim - 2)
        x -= np.asarray(info.mean, dtype=np.float32).reshape(axes)
        x /= np.asarray(info.std, dtype=np.float32).reshape(axes)
    return x
