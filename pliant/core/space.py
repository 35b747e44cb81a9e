"""Space: everything that can be chosen, as one value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.core.config import Config, Value
from pliant.core.counting import Conditions, boxes, count
from pliant.core.knob import Knob
from pliant.core.parts_of_space import Part

Builder = Callable[[dict[str, Any]], Any]
"""From the values of a space, by name, to what they stand for; a sub-space gives what it built itself."""


class Space:
    """What can be chosen: knobs, some of them there only while others have certain values, and sub-spaces.

    Without conditions it is the product of its knobs. A config holds the knobs that are there, no others. Sampled with
    an explicit generator; the order of the knobs is part of the value, the builder is not.

    >>> space = Space([Knob("width:a", (8, 16)), Knob("depth:b", (False, True))])
    >>> space.size, space.largest()
    (4, Config({'depth:b': True, 'width:a': 16}))

    >>> cell = Space([Knob("op", ("conv", "pool")), Knob("kernel", (3, 5), when={"op": "conv"})])
    >>> repeated("cell", cell, n=(1, 2)).size
    12

    Args:
        parts: knobs and sub-spaces (`optional`, `repeated`, `either`, `nested`, or a `Space`, whose parts are taken).
            Knobs stand after those they hang on.
        build: what makes something of the values, such as an `nn.Module`; see `build`.

    Raises:
        ValueError: two knobs with the same name, or a condition on a knob that is not before, that names what is none
            of its choices, or that contradicts another one.
    """

    def __init__(self, parts: "Sequence[Knob | Part | Space]", build: Builder | None = None) -> None:
        flat: list[Knob | Part] = []
        for part in parts:
            flat += part.parts if isinstance(part, Space) else (part,)
        self.parts: tuple[Knob | Part, ...] = tuple(flat)
        self.builder = build
        self.knobs = tuple(
            knob for part in self.parts for knob in ((part,) if isinstance(part, Knob) else part.knobs())
        )
        self._number = {knob.name: number for number, knob in enumerate(self.knobs)}
        if len(self._number) != len(self.knobs):
            names = [knob.name for knob in self.knobs]
            raise ValueError(f"knob names must differ, got twice: {sorted({n for n in names if names.count(n) > 1})}")
        self.conditions: tuple[Conditions, ...] = tuple(self._conditions(knob) for knob in self.knobs)
        for knob, box in zip(self.knobs, boxes(self._counts, self.conditions), strict=True):
            empty = [self.knobs[number].name for number, allowed in box.items() if not allowed]
            if empty:
                raise ValueError(f"knob {knob.name!r} can never be there: its conditions on {empty[0]!r} contradict")

    def _conditions(self, knob: Knob) -> Conditions:
        found = []
        for name, allowed in knob.conditions:
            if self._number.get(name, len(self.knobs)) >= self._number[knob.name]:
                raise ValueError(f"knob {knob.name!r} hangs on {name!r}, which must be a knob that stands before it")
            parent = self[name]
            try:
                found.append((self._number[name], frozenset(parent.index(value) for value in allowed)))
            except ValueError as error:
                raise ValueError(f"the condition of knob {knob.name!r} cannot hold: {error}") from error
        return tuple(found)

    @cached_property
    def _counts(self) -> list[int]:
        return [len(knob.choices) for knob in self.knobs]

    def __getitem__(self, name: str) -> Knob:
        if name not in self._number:
            raise ValueError(f"no knob {name!r}; knobs are {', '.join(self._number) or '(none)'}")
        return self.knobs[self._number[name]]

    def __iter__(self) -> Iterator[Knob]:
        return iter(self.knobs)

    def __len__(self) -> int:
        return len(self.knobs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.knobs == other.knobs

    def __hash__(self) -> int:
        return hash(self.knobs)

    def __repr__(self) -> str:
        return f"Space({len(self.knobs)} knobs, {self.size} sub-networks)"

    # -- what is in it ------------------------------------------------------------------------------------------------

    @cached_property
    def conditional(self) -> bool:
        """Whether some knob is not always there."""
        return any(self.conditions)

    @cached_property
    def size(self) -> int:
        """How many configs there are, exactly."""
        return count(self._counts, self.conditions)

    def _there(self, number: int, codes: Sequence[int]) -> bool:
        """Whether a knob is there; `codes` of those before it, -1 for what is not there."""
        return all(codes[parent] in allowed for parent, allowed in self.conditions[number])

    def _walk(self, choose: Callable[[int, Knob], int]) -> Config:
        """The config in which every knob that is there, in order, is set to the choice that `choose` numbers."""
        codes: list[int] = []
        for number, knob in enumerate(self.knobs):
            codes.append(choose(number, knob) if self._there(number, codes) else -1)
        return self._config(codes)

    def _config(self, codes: Sequence[int]) -> Config:
        return Config({k.name: k.choices[code] for k, code in zip(self.knobs, codes, strict=True) if code >= 0})

    def codes(self, config: Mapping[str, Value]) -> list[int]:
        """Which choice each knob has, -1 for knobs that are not there.

        Raises:
            ValueError: a knob that is there is missing.
        """
        codes: list[int] = []
        for number, knob in enumerate(self.knobs):
            there = self._there(number, codes)
            if there and knob.name not in config:
                raise ValueError(f"the config has no value for knob {knob.name!r}; it has {', '.join(config)}")
            codes.append(knob.index(config[knob.name]) if there else -1)
        return codes

    def largest(self) -> Config:
        """The config that keeps everything: the last choice of every knob."""
        return self._walk(lambda _, knob: len(knob.choices) - 1)

    def smallest(self) -> Config:
        """The config that keeps least: the first choice of every knob."""
        return self._walk(lambda *_: 0)

    def uniform(self, share: float) -> Config:
        """The config in which every counted knob keeps the choice nearest to `share` of its largest one.

        Depth knobs are all kept; other ordered choices stand as far up their list, and the rest are the last ones.
        Raises `ValueError` unless 0 < share <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")

        def nearest(_: int, knob: Knob) -> int:
            whole = knob.choices[-1]
            if isinstance(whole, bool) or not knob.ordered:
                return len(knob.choices) - 1
            if not isinstance(whole, int | float):
                return round(share * (len(knob.choices) - 1))
            return min(range(len(knob.choices)), key=lambda i: abs(knob.choices[i] - share * whole))

        return self._walk(nearest)

    def sample(self, generator: torch.Generator) -> Config:
        """A uniform draw of every knob that is there."""
        drawn = [int(torch.randint(len(knob.choices), (), generator=generator)) for knob in self.knobs]
        return self._walk(lambda number, _: drawn[number])

    def configs(self) -> Iterator[Config]:
        """Every config once, smallest first. Mind `size`."""
        codes: list[int] = []

        def rest(number: int) -> Iterator[Config]:
            if number == len(self.knobs):
                yield self._config(codes)
                return
            for code in range(self._counts[number]) if self._there(number, codes) else (-1,):
                codes.append(code)
                yield from rest(number + 1)
                codes.pop()

        return rest(0)

    def validate(self, config: Mapping[str, Value]) -> Config:
        """The config with missing knobs at their largest choice.

        Raises:
            ValueError: an unknown knob, one that is not there, or a value that is none of its choices.
        """
        for name in config:
            _ = self[name]
        codes: list[int] = []
        for number, knob in enumerate(self.knobs):
            there = self._there(number, codes)
            if knob.name in config and not there:
                raise ValueError(self._absent(number, codes))
            codes.append(-1 if not there else knob.index(config.get(knob.name, knob.choices[-1])))
        return self._config(codes)

    def _absent(self, number: int, codes: Sequence[int]) -> str:
        knob = self.knobs[number]
        unmet = next((p, allowed) for p, allowed in self.conditions[number] if codes[p] not in allowed)
        parent = self.knobs[unmet[0]]
        wanted = " or ".join(repr(parent.choices[code]) for code in sorted(unmet[1]))
        has = repr(parent.choices[codes[unmet[0]]]) if codes[unmet[0]] >= 0 else "not there"
        return f"knob {knob.name!r} is only there while {parent.name!r} is {wanted}, it is {has}"

    # -- moves that stay in it ----------------------------------------------------------------------------------------

    def neighbours(self, config: Mapping[str, Value]) -> list[Config]:
        """The configs one step away: one knob at the next choice up or down, or at any other one where it is unordered.

        Knobs that are there only then take their largest choice.
        """
        codes = self.codes(config)
        found: dict[Config, None] = {}
        for number, knob in enumerate(self.knobs):
            if codes[number] < 0:
                continue
            steps = (codes[number] - 1, codes[number] + 1) if knob.ordered else range(len(knob.choices))
            for step in steps:
                if step != codes[number] and 0 <= step < len(knob.choices):
                    wanted = [*codes[:number], step, *codes[number + 1 :]]
                    found[self._settled(wanted, lambda _, knob: len(knob.choices) - 1)] = None
        return list(found)

    def mutate(self, config: Mapping[str, Value], generator: torch.Generator, *, times: int = 1) -> Config:
        """A valid config in which `times` knobs were set to another choice, one after the other.

        Knobs that come to be there are drawn; those that are no longer there vanish.

        Raises:
            ValueError: `times` below 1, or a config of another space.
        """
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        result = self.validate(config)
        for _ in range(times):
            codes = self.codes(result)
            free = [number for number, code in enumerate(codes) if code >= 0 and self._counts[number] > 1]
            if not free:
                break
            at = free[_below(len(free), generator)]
            codes[at] = (codes[at] + 1 + _below(self._counts[at] - 1, generator)) % self._counts[at]
            result = self._settled(codes, lambda _, knob: _below(len(knob.choices), generator))
        return result

    def cross(self, one: Mapping[str, Value], other: Mapping[str, Value], *, generator: torch.Generator) -> Config:
        """A valid child: every knob that is there has the value of one parent, at random among those that have it."""
        left, right = self.codes(one), self.codes(other)
        pick = torch.rand(len(self), generator=generator).tolist()
        wanted = [a if b < 0 or (a >= 0 and share < 0.5) else b for a, b, share in zip(left, right, pick, strict=True)]
        return self._settled(wanted, lambda _, knob: _below(len(knob.choices), generator))

    def _settled(self, wanted: Sequence[int], otherwise: Callable[[int, Knob], int]) -> Config:
        """The config with the wanted choices where knobs are there, and others where nothing (-1) is wanted."""
        return self._walk(lambda number, knob: wanted[number] if wanted[number] >= 0 else otherwise(number, knob))

    # -- for predictors -----------------------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What the columns of `encode` mean: `knob=choice`, `knob` for a range, `knob absent` for the mask."""
        found: list[str] = []
        for knob, own in zip(self.knobs, self.conditions, strict=True):
            found += [knob.name] if knob.scale else [f"{knob.name}={choice!r}" for choice in knob.choices]
            found += [f"{knob.name} absent"] if own else []
        return tuple(found)

    def encode(self, config: Mapping[str, Value]) -> NDArray[np.float64]:
        """The one encoding of all predictors: float64 [columns], in the order of the knobs.

        A knob has a column for each choice, of which one is 1; a range has one column from 0 to 1, even in the
        logarithm where its scale is. A knob that is not always there has one more, 1 while it is not; the others are 0
        then.
        """
        row: NDArray[np.float64] = self.encode_codes(
            np.asarray([self.codes(config)], dtype=np.int64).reshape(1, len(self))
        )[0]
        return row

    def encode_codes(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """`encode` of many configs, given by their `codes`: int64 [configs, knobs] -> float64 [configs, columns]."""
        rows = np.zeros((len(codes), len(self.columns)))
        at = 0
        for number, knob in enumerate(self.knobs):
            code = codes[:, number]
            there = np.flatnonzero(code >= 0)
            if knob.scale:
                rows[there, at] = code[there] / max(1, len(knob.choices) - 1)
            else:
                rows[there, at + code[there]] = 1.0
            at += 1 if knob.scale else len(knob.choices)
            if self.conditions[number]:
                rows[code < 0, at] = 1.0
                at += 1
        return rows

    # -- what it stands for -------------------------------------------------------------------------------------------

    def values(self, config: Mapping[str, Value]) -> dict[str, Any]:
        """The values as they are nested: a sub-space gives a dict, a repeated one a list, an absent one None.

        Sub-spaces that have a builder give what it built.
        """
        return self._values(self.validate(config), "")

    def _values(self, config: Config, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in self.parts:
            if isinstance(part, Knob):
                if prefix + part.name in config:
                    found[part.name] = config[prefix + part.name]
            else:
                found[part.name] = part.values(config, prefix)
        return found

    def built(self, config: Config, prefix: str) -> Any:
        """What this space, standing as a sub-space at `prefix`, gives for a whole valid config: see `values`."""
        found = self._values(config, prefix)
        return found if self.builder is None else self.builder(found)

    def build(self, config: Mapping[str, Value]) -> Any:
        """What the builder makes of a config; sub-spaces are built first.

        Raises:
            ValueError: the space has no builder, or the config is none of its.
        """
        if self.builder is None:
            raise ValueError("this space has no builder; give one: Space(parts, build=function of the values)")
        return self.builder(self.values(config))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse, but for builders."""
        told: dict[str, Any] = {"knobs": [knob.to_dict() for knob in self.knobs]}
        if any(isinstance(part, Part) for part in self.parts):
            told["parts"] = [part.to_dict() for part in self.parts]
        return told

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], build: Builder | None = None) -> "Space":
        """The inverse of `to_dict`."""
        parts = [
            Part.from_dict(part, cls.from_dict) if "part" in part else Knob.from_dict(part)
            for part in data.get("parts", data["knobs"])
        ]
        return cls(parts, build)


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def optional(name: str, space: Space) -> Space:
    """A sub-space that is there or not: a knob `name` (False, True), and the knobs of `space` as `name.knob`."""
    return Space([Part("optional", name, (space,))])


def repeated(name: str, space: Space, *, n: int | tuple[int, int], tied: bool = False) -> Space:
    """A sub-space stacked several times.

    Args:
        name: of the knob for how often, which is there unless that is fixed.
        space: the sub-space; its knobs become `name.0.knob`, `name.1.knob`, ... or, tied, `name.knob`.
        n: how often, or the least and the most.
        tied: whether all copies make the same choices.

    Raises:
        ValueError: a least below 0, or a most below the least or below 1.
    """
    least, most = (n, n) if isinstance(n, int) else n
    if not 0 <= least <= most or most < 1:
        raise ValueError(
            f"{name!r} is repeated {n} times: the least must not be negative, the most at least 1 and that"
        )
    return Space([Part("repeated", name, (space,), least=least, most=most, tied=tied)])


def either(name: str, spaces: Mapping[str, Space]) -> Space:
    """One of several sub-spaces: a knob `name` with their labels, and the knobs of the chosen one as `name.label.knob`.

    Raises:
        ValueError: no sub-spaces.
    """
    if not spaces:
        raise ValueError(f"{name!r} needs at least one sub-space to choose from")
    return Space([Part("either", name, tuple(spaces.values()), tuple(spaces))])


def nested(name: str, space: Space) -> Space:
    """A sub-space that is always there; its knobs become `name.knob`."""
    return Space([Part("nested", name, (space,))])
