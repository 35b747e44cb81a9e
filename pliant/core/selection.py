"""Selection: a sub-network by freely chosen units."""

from collections.abc import Iterator, Mapping, Sequence

Kept = tuple[int, ...] | bool


class Selection(Mapping[str, Kept]):
    """Which units stay: a frozen, hashable mapping from the name of a width to unit indices, of a depth to a boolean.

    A `Config` keeps the first units of every width; a selection keeps any. What is not named is kept whole.

    >>> Selection({"width:fc1": [5, 0, 2]})
    Selection({'width:fc1': (0, 2, 5)})

    Raises:
        TypeError: indices that are no ints.
        ValueError: no indices, negative or repeated ones.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Sequence[int] | bool]) -> None:
        self._values: dict[str, Kept] = {name: _kept(name, values[name]) for name in sorted(values)}

    def __getitem__(self, name: str) -> Kept:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self._values == other._values

    def __repr__(self) -> str:
        return f"Selection({self._values!r})"


def _kept(name: str, value: Sequence[int] | bool) -> Kept:
    if isinstance(value, bool):
        return value
    indices = tuple(value)
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise TypeError(f"{name}: unit indices must be ints, got {list(indices)}")
    if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
        raise ValueError(f"{name}: at least one unit, none negative or twice; got {list(indices)}")
    return tuple(sorted(indices))
