"""Space: everything that can be chosen, as one value."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.core.config import Config, Value


@dataclass(frozen=True)
class Knob:
    """One choice. `choices` ascend; the last one keeps everything.

    Raises:
        ValueError: no choices, or choices that do not strictly ascend.
    """

    name: str
    choices: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError(f"knob {self.name!r} needs at least one choice")
        if any(a >= b for a, b in zip(self.choices, self.choices[1:], strict=False)):
            raise ValueError(f"choices of knob {self.name!r} must strictly ascend, got {self.choices}")

    @property
    def kind(self) -> str:
        """The part of the name before the colon: width, heads, depth, ..."""
        return self.name.partition(":")[0]


class Space:
    """The product of its knobs. Sampled with an explicit generator; the order of the knobs is part of the value.

    >>> space = Space([Knob("width:a", (8, 16)), Knob("depth:b", (False, True))])
    >>> space.size, space.largest()
    (4, Config({'depth:b': True, 'width:a': 16}))

    Raises:
        ValueError: two knobs with the same name.
    """

    def __init__(self, knobs: list[Knob] | tuple[Knob, ...]) -> None:
        self.knobs = tuple(knobs)
        self._by_name = {knob.name: knob for knob in self.knobs}
        if len(self._by_name) != len(self.knobs):
            names = [knob.name for knob in self.knobs]
            raise ValueError(f"knob names must differ, got twice: {sorted({n for n in names if names.count(n) > 1})}")

    def __getitem__(self, name: str) -> Knob:
        if name not in self._by_name:
            raise ValueError(f"no knob {name!r}; knobs are {', '.join(self._by_name) or '(none)'}")
        return self._by_name[name]

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

    @property
    def size(self) -> int:
        """How many configs there are."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    def largest(self) -> Config:
        """The config that keeps everything."""
        return Config({knob.name: knob.choices[-1] for knob in self.knobs})

    def smallest(self) -> Config:
        """The config that keeps least."""
        return Config({knob.name: knob.choices[0] for knob in self.knobs})

    def sample(self, generator: torch.Generator) -> Config:
        """A uniform draw of every knob."""
        picks = {k.name: int(torch.randint(len(k.choices), (), generator=generator)) for k in self.knobs}
        return Config({k.name: k.choices[picks[k.name]] for k in self.knobs})

    def uniform(self, share: float) -> Config:
        """The config in which every counted knob keeps the choice nearest to `share` of its largest one.

        Depth knobs are all kept. Raises `ValueError` unless 0 < share <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        values: dict[str, Value] = {}
        for knob in self.knobs:
            whole = knob.choices[-1]
            near = min(knob.choices, key=lambda choice, whole=whole: abs(choice - share * whole))  # type: ignore[misc]
            values[knob.name] = whole if isinstance(whole, bool) else near
        return Config(values)

    def configs(self) -> Iterator[Config]:
        """Every config, smallest first. Mind `size`."""
        names = [knob.name for knob in self.knobs]
        for values in product(*(knob.choices for knob in self.knobs)):
            yield Config(dict(zip(names, values, strict=True)))

    def validate(self, config: Mapping[str, Value]) -> Config:
        """The config with missing knobs at their largest choice.

        Raises:
            ValueError: an unknown knob, or a value that is none of its choices.
        """
        values: dict[str, Value] = {knob.name: knob.choices[-1] for knob in self.knobs}
        for name, value in config.items():
            knob = self[name]
            if value not in knob.choices:
                raise ValueError(f"knob {name!r} takes one of {list(knob.choices)}, got {value!r}")
            values[name] = knob.choices[knob.choices.index(value)]
        return Config(values)

    def encode(self, config: Mapping[str, Value]) -> NDArray[np.float64]:
        """One-hot row over all knobs' choices, in the order of the knobs: float64 [sum of choices]."""
        row = [float(choice == config[knob.name]) for knob in self.knobs for choice in knob.choices]
        return np.asarray(row, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse."""
        return {"knobs": [{"name": knob.name, "choices": list(knob.choices)} for knob in self.knobs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Space":
        """The inverse of `to_dict`."""
        return cls([Knob(str(knob["name"]), tuple(knob["choices"])) for knob in data["knobs"]])
