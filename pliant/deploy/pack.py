"""Weights of many sub-networks in one file: every tensor once, sub-networks as slices of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError
from pliant_runtime.grammar import ALIGNMENT, DTYPES

Array = NDArray[Any]
Ranges = Sequence[Sequence[Sequence[int]] | None] | None
Source = tuple[str, Ranges]
"""Where a tensor comes from: name in the full network, and per axis the [begin, end] runs kept (None: whole)."""


def cut(array: Array, ranges: Ranges) -> Array:
    """The slice of an array that ranges describe. Raises `ValueError` when there are not as many ranges as axes."""
    if ranges is None:
        return array
    if len(ranges) != array.ndim:
        raise ValueError(f"{len(ranges)} ranges for an array of {array.ndim} axes")
    for axis, runs in enumerate(ranges):
        if runs is not None:
            array = np.take(array, indices_of(runs), axis=axis)
    return array


def indices_of(runs: Sequence[Sequence[int]]) -> Array:
    """The indices that [begin, end] runs go through, in their order."""
    return np.concatenate([np.arange(begin, end) for begin, end in runs] or [np.arange(0)])


def _runs(indices: Array) -> list[list[int]]:
    """The runs of ascending neighbours in a list of indices, in order."""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(piece[0]), int(piece[-1]) + 1] for piece in np.split(indices, breaks)]


def _same(one: Array, other: Array) -> bool:
    """Equal bit for bit (a NaN equals itself, -0 does not equal 0)."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


@dataclass
class _Use:
    weight: str
    ranges: Ranges


@dataclass
class Packer:
    """Collects the weights of entries, then writes them.

    Args:
        full: the full network's tensors, by name.
    """

    full: Mapping[str, Array]
    apart: int = 0
    _own: dict[str, Array] = field(default_factory=dict)
    _by_content: dict[str, str] = field(default_factory=dict)
    _entries: list[dict[str, _Use]] = field(default_factory=list)

    def own(self, name: str, array: Array) -> str:
        """Keep a tensor that is no slice of the full network; equal ones are kept once.

        Returns:
            The name it is stored under.

        Raises:
            PliantError: a dtype that artifacts do not hold.
        """
        _check_dtype(name, array)
        array = np.ascontiguousarray(array).reshape(array.shape)
        content = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
        if content not in self._by_content:
            taken, number = name, 1
            while taken in self._own or taken in self.full:
                taken, number = f"{name}@{number}", number + 1
            self._own[taken] = array
            self._by_content[content] = taken
        return self._by_content[content]

    def add(self, weights: Mapping[str, Array], sources: Mapping[str, Source]) -> int:
        """Add the weights of one entry. Those that are exact slices of the full network are not stored again.

        Returns:
            The entry's number, for `initializers`.
        """
        uses = {}
        for name, array in weights.items():
            source, ranges = sources.get(name, (None, None))
            whole = self.full.get(source) if source is not None else None
            if source is not None and whole is not None and _fits(whole, ranges) and _same(cut(whole, ranges), array):
                _check_dtype(name, array)
                uses[name] = _Use(source, ranges)
            else:
                self.apart += 1
                uses[name] = _Use(self.own(name, array), None)
        self._entries.append(uses)
        return len(self._entries) - 1

    def write(self, path: Path) -> list[dict[str, Any]]:
        """Write weights.bin: what the entries use of the full network, then the tensors of their own.

        Of a tensor nobody needs whole, only the union of what is needed is kept, axis by axis.

        Returns:
            The `tensors` of the program.
        """
        self._kept = {name: self._union(name) for name in self._used()}
        arrays = {name: cut(self.full[name], self._as_ranges(kept)) for name, kept in self._kept.items()}
        records, offset = [], 0
        with open(path, "wb") as file:
            for name, array in {**arrays, **self._own}.items():
                content = np.ascontiguousarray(array).tobytes()
                padding = -offset % ALIGNMENT
                file.write(b"\0" * padding + content)
                offset += padding
                records.append(
                    {
                        "name": name,
                        "dtype": str(array.dtype),
                        "shape": list(array.shape),
                        "offset": offset,
                        "nbytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                )
                offset += len(content)
        return records

    def initializers(self, entry: int) -> list[dict[str, Any]]:
        """The `initializers` of an entry's state; call after `write`."""
        found = []
        for name, use in self._entries[entry].items():
            kept = self._kept.get(use.weight)
            ranges = None if kept is None else self._shifted(use, kept)
            found.append({"name": name, "tensor": use.weight, "ranges": ranges})
        return found

    def _used(self) -> list[str]:
        used = {use.weight for uses in self._entries for use in uses.values()}
        return [name for name in self.full if name in used]

    def _union(self, name: str) -> list[Array | None]:
        """Per axis the indices any entry needs, ascending; None where that is all of them."""
        shape = self.full[name].shape
        masks = [np.zeros(size, dtype=bool) for size in shape]
        for use in (use for uses in self._entries for use in uses.values() if use.weight == name):
            for mask, runs in zip(masks, use.ranges or [None] * len(shape), strict=True):
                mask[indices_of(runs) if runs is not None else slice(None)] = True
        return [None if mask.all() else np.flatnonzero(mask) for mask in masks]

    @staticmethod
    def _as_ranges(kept: list[Array | None]) -> Ranges:
        return [None if indices is None else _runs(indices) for indices in kept]

    def _shifted(self, use: _Use, kept: list[Array | None]) -> list[list[list[int]] | None] | None:
        """An entry's ranges counted in what is kept; None where the whole of it is used."""
        shape = self.full[use.weight].shape
        shifted: list[list[list[int]] | None] = []
        for size, indices, runs in zip(shape, kept, use.ranges or [None] * len(shape), strict=True):
            wanted = np.arange(size) if runs is None else indices_of(runs)
            places = wanted if indices is None else np.searchsorted(indices, wanted)
            length = size if indices is None else len(indices)
            whole = len(places) == length and bool((places == np.arange(length)).all())
            shifted.append(None if whole else _runs(places))
        return None if all(runs is None for runs in shifted) else shifted


def _fits(whole: Array, ranges: Ranges) -> bool:
    return ranges is None or len(ranges) == whole.ndim


def _check_dtype(name: str, array: Array) -> None:
    if str(array.dtype) not in DTYPES:
        problem = f"weight {name!r} is {array.dtype}"
        raise PliantError(problem, fix=f"convert the network first; artifacts hold {', '.join(DTYPES)}")
