"""Selection: a sub-network by freely chosen units."""

from collections.abc import Mapping, Sequence

from pliant.core.frozen import FrozenMapping

Kept = tuple[int, ...] | bool


class Selection(FrozenMapping[Kept]):
    """Which units stay: a frozen, hashable mapping from the name of a width to unit indices, of a depth to a boolean.

    A `Config` keeps the first units of every width; a selection keeps any. What is not named is kept whole.

    >>> Selection({"width:fc1": [5, 0, 2]})
    Selection({'width:fc1': (0, 2, 5)})

    Raises:
        TypeError: indices that are no ints.
        ValueError: no indices, negative or repeated ones.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[str, Sequence[int] | bool]) -> None:
        super().__init__({name: _kept(name, value) for name, value in values.items()})


def _kept(name: str, value: Sequence[int] | bool) -> Kept:
    if isinstance(value, bool):
        return value
    indices = tuple(value)
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise TypeError(f"{name}: unit indices must be ints, got {list(indices)}")
    if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
        raise ValueError(f"{name}: at least one unit, none negative or twice; got {list(indices)}")
    return tuple(sorted(indices))
