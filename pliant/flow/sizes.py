"""Lengths of a network's inputs that are left free while its code is read.

The sizes that follow from them are symbols then, and whatever Python's or torch's code takes for granted about a symbol
(`if x.shape[1] > 16`, a table of 512 positions, `int(n)`) is noted as a fact, with its line. The program that comes out
holds for all lengths for which every fact is true.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from pliant.core._torch_private import always_true, expression_of, free_sizes
from pliant.flow.errors import Place
from pliant.flow.scalar import Sym, is_free
from pliant.flow.values import Env

Shape = Sequence[Any]
"""Of ints and, where a size is free, `torch.SymInt`s."""
Lengths = Mapping[str, int]


@dataclass(frozen=True)
class Fact:
    """What code takes for granted about lengths.

    Args:
        relation: of sympy, in the lengths' names.
        place: in whose line; None where no line of the network is under way.
    """

    relation: Any
    place: Place | None

    def holds(self, lengths: Lengths) -> bool:
        """Whether it is true at some lengths."""
        return bool(self.relation.subs(lengths) == True)  # noqa: E712 (a sympy truth, or a relation left open)


class Sizes:
    """Free lengths.

    Args:
        free: per input tensor, in order, the free axes: axis to the name of the length.
        example: name to the length in the example, 2 or more.
    """

    def __init__(self, free: Sequence[Mapping[int, str]], example: Lengths) -> None:
        self.free, self.example = list(free), dict(example)
        self.facts: list[Fact] = []
        self.lengths: dict[str, int] = dict(example)
        self.mode, self.symbols = free_sizes(example, self._note)
        from sympy import Symbol  # type: ignore[import-untyped]  # late: it takes a while

        self._names = {expression_of(symbol): Symbol(name) for name, symbol in self.symbols.items()}
        self._named: dict[Any, Any] = {}
        self._loops: dict[tuple[CodeType, int], bool] = {}

    def _note(self, relation: Any) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and not isinstance(frame.f_globals, Env):
            frame = frame.f_back
        place = None if frame is None else Place(frame.f_code.co_filename, frame.f_lineno)
        self.facts.append(Fact(relation.xreplace(self._names), place))

    def shape(self, number: int, shape: Shape) -> tuple[Any, ...]:
        """The shape of an input tensor with symbols for its free sizes."""
        axes = self.free[number]
        return tuple(self.symbols[axes[axis]] if axis in axes else size for axis, size in enumerate(shape))

    def named(self, size: Any) -> Any:
        """A free size as a sympy expression in the lengths' names."""
        raw = expression_of(size)
        if raw not in self._named:
            self._named[raw] = raw.xreplace(self._names)
        return self._named[raw]

    def label(self, size: Any) -> int | str:
        """A size, free ones as text: equal texts are equal sizes."""
        return str(self.named(size)).replace(" ", "") if is_free(size) else int(size)

    def read(self, size: Any) -> tuple[str, int, int] | None:
        """The length that a size is a multiple of, the factor and what is added; None for any other size."""
        if not is_free(size):
            return None
        expression = self.named(size)
        if len(expression.free_symbols) != 1:
            return None
        (name,) = expression.free_symbols
        times = expression.coeff(name)
        plus = (expression - times * name).expand()
        return (str(name), int(times), int(plus)) if times.is_Integer and times and plus.is_Integer else None

    def value(self, size: Any) -> Any:
        """A size at the current lengths."""
        if not is_free(size):
            return size
        found = self.named(size).subs(self.lengths)
        return int(found) if isinstance(size, torch.SymInt) else float(found)

    def values(self, shape: Shape) -> tuple[int, ...]:
        """A shape at the current lengths."""
        return tuple(self.value(size) for size in shape)

    @contextmanager
    def at(self, lengths: Lengths) -> Iterator[None]:
        """Other lengths than the example's, for a while."""
        before, self.lengths = self.lengths, {**self.lengths, **lengths}
        try:
            yield
        finally:
            self.lengths = before

    def broken(self, lengths: Lengths) -> Fact | None:
        """A fact that is not true at some lengths."""
        return next((fact for fact in self.facts if not fact.holds(lengths)), None)

    def looped(self, start: Any, stop: Any) -> bool | None:
        """Whether a `range` from here to there, called by the code under way, is gone through at run time.

        It is where an end was free while the code was read; later, with plain lengths, its place tells.

        Returns:
            None where it is not; else whether it goes through one number at least, at all lengths.
        """
        frame: Any = sys._getframe(1)
        while frame is not None and not isinstance(frame.f_globals, Env):
            frame = frame.f_back
        place = None if frame is None else (frame.f_code, frame.f_lasti)
        if place is None:
            return None
        if is_free(start) or is_free(stop):
            self._loops[place] = not isinstance(start, Sym) and not isinstance(stop, Sym) and always_true(start < stop)
        return self._loops.get(place)
