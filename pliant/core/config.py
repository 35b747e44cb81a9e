"""Config: the name of one sub-network."""

import json
from collections.abc import Mapping

from pliant.core.frozen import FrozenMapping

Value = int | bool


class Config(FrozenMapping[Value]):
    """A sub-network: a frozen, hashable mapping from knob name to value.

    Knob names read `kind:module.path` (`width:layer2`, `heads:blocks.3.attn`, `depth:blocks.1`). A value is a kept
    count (int) or, for depth knobs, whether the span is kept (bool). Two configs are equal when they hold the same
    pairs, in any order.

    >>> Config({"width:fc1": 16, "depth:block": True}).to_json()
    '{"depth:block": true, "width:fc1": 16}'

    Raises:
        TypeError: a name that is no string, or a value that is neither int nor bool.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if not isinstance(name, str):
                raise TypeError(f"knob names must be strings, got {name!r}")
            if not isinstance(value, int):
                raise TypeError(f"knob {name!r} must be an int or a bool, got {value!r} ({type(value).__name__})")
        super().__init__(values)

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
