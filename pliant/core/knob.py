"""Knob: one choice, the letters that spaces are written in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pliant.core.config import Value, check_value, frozen_value

MOST_STEPS = 65536
"""Values a range may have: every one is a choice of its own, so that sizes and enumerations are exact."""


@dataclass(frozen=True)
class Knob:
    """One choice.

    Numbers are ordered: `choices` ascend, and the last one keeps everything. Names (strings, None, tuples) are not,
    unless `ordered` says so; then they stand in the order in which they are given.

    Args:
        name: in a network `kind:module.path`; elsewhere any string.
        choices: distinct values; ints and bools where the name has a colon, else anything that JSON can hold and that
            can be hashed.
        ordered: whether neighbours are alike; None for "if they are numbers".
        scale: "" for single choices; "linear" or "log" for a range, which predictors see as one number.
        when: the knob is there only while each of these knobs has one of these values (or this single one).

    Raises:
        ValueError: no choices, equal ones, numbers that do not strictly ascend, an unknown scale, or a condition
            without values.
        TypeError: a choice that JSON cannot hold.
    """

    name: str
    choices: tuple[Value, ...]
    ordered: bool | None = None
    scale: str = ""
    when: Mapping[str, Any] | tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def __post_init__(self) -> None:
        choices = tuple(frozen_value(choice) for choice in self.choices)
        if not choices:
            raise ValueError(f"knob {self.name!r} needs at least one choice")
        for choice in choices:
            check_value(self.name, choice)
        numbers = all(isinstance(choice, int | float) for choice in choices)
        ordered = numbers if self.ordered is None else self.ordered
        if ordered and numbers and any(a >= b for a, b in pairwise(choices)):
            raise ValueError(f"choices of knob {self.name!r} must strictly ascend, got {choices}")
        if len(set(choices)) != len(choices):
            raise ValueError(f"choices of knob {self.name!r} must differ, got {choices}")
        if self.scale not in ("", "linear", "log") or (self.scale and not (ordered and numbers)):
            raise ValueError(
                f"the scale of knob {self.name!r} is '', or for numbers 'linear' or 'log', got {self.scale!r}"
            )
        pairs = self.when.items() if isinstance(self.when, Mapping) else self.when
        when = tuple((name, tuple(frozen_value(value) for value in _values(allowed))) for name, allowed in pairs)
        for name, allowed in when:
            if not allowed:
                raise ValueError(f"knob {self.name!r} can never be there: its condition on {name!r} names no value")
        for field, value in (("choices", choices), ("ordered", ordered), ("when", when)):
            object.__setattr__(self, field, value)

    @classmethod
    def integers(
        cls,
        name: str,
        span: tuple[int, int],
        *,
        step: int = 1,
        log: bool = False,
        when: Mapping[str, Any] | None = None,
    ) -> "Knob":
        """A range of whole numbers.

        Args:
            name: of the knob.
            span: the smallest and the largest, both included; where steps do not meet the largest, the last one below.
            step: between neighbours; with `log` the least distance.
            log: about eight values for each doubling instead of all, evenly spread in the logarithm.
            when: see `Knob`.

        Raises:
            ValueError: the smallest above the largest, a step below 1, the smallest below 1 with `log`, or more than
                65,536 values.
        """
        low, high = span
        if low > high:
            raise ValueError(f"range {name!r} is empty: it runs from {low} to {high}")
        if step < 1 or (log and low < 1):
            raise ValueError(f"range {name!r} needs a step of at least 1 (and a low end of at least 1 with log)")
        if log:
            count = max(2, math.ceil(8 * math.log2(high / low)) + 1) if high > low else 1
            raw = (low * (high / low) ** (i / max(1, count - 1)) for i in range(count))
            choices = tuple(sorted({min(high, low + step * round((value - low) / step)) for value in raw}))
        else:
            _refuse_many(name, (high - low) // step + 1, "step")
            choices = tuple(range(low, high + 1, step))
        return cls(name, choices, scale="log" if log else "linear", when=when or {})

    @classmethod
    def floats(
        cls,
        name: str,
        span: tuple[float, float],
        *,
        points: int = 1001,
        log: bool = False,
        when: Mapping[str, Any] | None = None,
    ) -> "Knob":
        """A range of real numbers, on a grid of `points`, so that configs can be counted and told apart.

        Args:
            name: of the knob.
            span: the smallest and the largest.
            points: how many, evenly spread, with `log` in the logarithm.
            log: see `points`.
            when: see `Knob`.

        Raises:
            ValueError: the smallest is not below the largest, an end that is not finite, a smallest of 0 or less with
                `log`, fewer than 2 points or more than 65,536.
        """
        low, high = span
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"range {name!r} is empty or not finite: it runs from {low} to {high}")
        if points < 2 or (log and low <= 0):
            raise ValueError(f"range {name!r} needs at least 2 points (and a positive low end with log)")
        _refuse_many(name, points, "points")
        shares = [i / (points - 1) for i in range(points)]
        raw = (low * (high / low) ** share if log else low + share * (high - low) for share in shares)
        choices = (float(low), *(float(f"{value:.12g}") for value in list(raw)[1:-1]), float(high))
        return cls(name, choices, scale="log" if log else "linear", when=when or {})

    @property
    def kind(self) -> str:
        """The part of the name before the colon: width, heads, depth, ..."""
        return self.name.partition(":")[0]

    def index(self, value: Value) -> int:
        """Which choice a value is. Raises `ValueError` for a value that is none."""
        value = frozen_value(value)
        if value not in self.choices:
            raise ValueError(f"knob {self.name!r} takes {self.told()}, got {value!r}")
        return self.choices.index(value)

    def told(self) -> str:
        """The choices in words."""
        if not self.scale or len(self.choices) < 10:
            return f"one of {list(self.choices)}"
        return f"one of {len(self.choices)} values from {self.choices[0]} to {self.choices[-1]}"

    def below(self, prefix: str, also: Mapping[str, Sequence[Value]]) -> "Knob":
        """The same knob in a sub-space: names begin with `prefix`, and it is there only while `also` holds too."""
        when = [(prefix + name, allowed) for name, allowed in self.conditions]
        return Knob(
            prefix + self.name,
            self.choices,
            self.ordered,
            self.scale,
            (*when, *((n, tuple(a)) for n, a in also.items())),
        )

    @property
    def conditions(self) -> tuple[tuple[str, tuple[Value, ...]], ...]:
        """`when` as pairs of name and allowed values."""
        return tuple(self.when)  # type: ignore[arg-type]  # made a tuple of pairs at construction

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; what is as usual is left out."""
        told: dict[str, Any] = {"name": self.name, "choices": list(self.choices)}
        if self.ordered != all(isinstance(choice, int | float) for choice in self.choices):
            told["ordered"] = self.ordered
        if self.scale:
            told["scale"] = self.scale
        if self.when:
            told["when"] = [[name, list(allowed)] for name, allowed in self.conditions]
        return told

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Knob":
        """The inverse of `to_dict`."""
        when = tuple((str(name), tuple(allowed)) for name, allowed in data.get("when", ()))
        return cls(str(data["name"]), tuple(data["choices"]), data.get("ordered"), str(data.get("scale", "")), when)


def _values(allowed: Any) -> Sequence[Value]:
    """Several values, or a single one without brackets around it."""
    return allowed if isinstance(allowed, list | tuple | set | frozenset | range) else (allowed,)  # type: ignore[return-value]


def _refuse_many(name: str, count: int, fix: str) -> None:
    if count > MOST_STEPS:
        raise ValueError(f"range {name!r} has {count} values, at most {MOST_STEPS} are possible; give another {fix}=")
