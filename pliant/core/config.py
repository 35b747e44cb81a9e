"""Config: the name of one sub-network."""

import json
from collections.abc import Iterator, Mapping

Value = int | bool


class Config(Mapping[str, Value]):
    """A sub-network: a frozen, hashable mapping from knob name to value.

    Knob names read `kind:module.path` (`width:layer2`, `heads:blocks.3.attn`, `depth:blocks.1`). A value is a kept
    count (int) or, for depth knobs, whether the span is kept (bool). Two configs are equal when they hold the same
    pairs, in any order.

    >>> Config({"width:fc1": 16, "depth:block": True}).to_json()
    '{"depth:block": true, "width:fc1": 16}'

    Raises:
        TypeError: a name that is no string, or a value that is neither int nor bool.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if not isinstance(name, str):
                raise TypeError(f"knob names must be strings, got {name!r}")
            if not isinstance(value, int):
                raise TypeError(f"knob {name!r} must be an int or a bool, got {value!r} ({type(value).__name__})")
        self._values: dict[str, Value] = {name: values[name] for name in sorted(values)}
        self._hash = hash(self.to_json())

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_json() == other.to_json()  # 1 is not True here

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

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
