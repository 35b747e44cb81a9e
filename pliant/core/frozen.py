"""The mapping that configs and selections are."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


class FrozenMapping(Mapping[str, V]):
    """A hashable mapping with sorted names. Equal to one of its own class with the same values (1 is not True here)."""

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, V]) -> None:
        self._values: dict[str, V] = {name: values[name] for name in sorted(values)}
        self._hash = hash(repr(self))

    def __reduce__(self) -> tuple[type, tuple[dict[str, V]]]:
        return type(self), (self._values,)  # hashes of strings differ between processes: it is computed anew

    def __getitem__(self, name: str) -> V:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and repr(self) == repr(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"
