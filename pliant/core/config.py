"""Config: the name of one sub-network."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from pliant.core.frozen import FrozenMapping

Value: TypeAlias = Any
"""What a knob is set to: a kept count or whether something is kept, and for choices that belong to no part of a network
any number, string, None, or tuple of these."""


class Config(FrozenMapping[Value]):
    """A sub-network: a frozen, hashable mapping from knob name to value.

    Knob names of a network read `kind:module.path` (`width:layer2`, `heads:blocks.3.attn`, `depth:blocks.1`). A value
    is a kept count (int) or, for depth knobs, whether the span is kept (bool). Names without a colon are choices of
    another sort and take any value that JSON holds and that can be hashed. Two configs are equal when they hold the
    same pairs, in any order.

    >>> Config({"width:fc1": 16, "depth:block": True}).to_json()
    '{"depth:block": true, "width:fc1": 16}'

    Raises:
        TypeError: a name that is no string, a value that is neither int nor bool under a name with a colon, or one
            that JSON cannot hold.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if not isinstance(name, str):
                raise TypeError(f"knob names must be strings, got {name!r}")
            check_value(name, frozen_value(value))
        super().__init__({name: frozen_value(value) for name, value in values.items()})

    def replace(self, changes: Mapping[str, Value]) -> "Config":
        """A copy with some knobs set anew."""
        return Config({**self._values, **changes})

    def to_json(self) -> str:
        """One line of JSON with sorted names: equal configs give equal text."""
        return json.dumps(self._values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The inverse of `to_json`. Raises `ValueError` for text that is no JSON object."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a config is a JSON object, got {text[:80]!r}")
        return cls(values)


def check_value(name: str, value: Value) -> None:
    """Raises `TypeError` for a value that the knob `name` cannot take, whatever its choices are."""
    if ":" in name:  # a count of kept units is easily mistaken for the share that is kept
        if not isinstance(value, int):
            raise TypeError(f"knob {name!r} must be an int or a bool, got {value!r} ({type(value).__name__})")
    elif isinstance(value, tuple):
        for item in value:
            check_value(name, item)
    elif not isinstance(value, int | float | str | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"knob {name!r} takes what JSON holds (finite numbers, strings, ...), got {value!r}")


def frozen_value(value: Any) -> Value:
    """Lists, which JSON makes of tuples, as tuples again; everything else as it is."""
    return tuple(frozen_value(item) for item in value) if isinstance(value, list | tuple) else value
