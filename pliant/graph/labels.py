"""Labels: which indices of which axes live and die together.

A *field* is a tensor of integer labels with the shape of the value it belongs to (size 1 along axes on which it does
not vary). Label 0 means fixed. Because a field has the value's own shape, shape operators simply run on it. A value
carries one field for each independent way in which it can shrink: a weight `[out, in]` has two, an activation
usually one. An axis on which no field varies is fixed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Field:
    """Labels of one value, int64, size 1 on axes along which they are constant.

    Args:
        labels: as many axes as the value.
        soft: whether the entries are all alike (a factory's zeros, an expanded axis), so that any number of them will
            do; a soft field gives way to another one on the same axis.
    """

    labels: Tensor
    soft: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the labels vary."""
        return tuple(axis for axis, size in enumerate(self.labels.shape) if size > 1)


@dataclass
class Traced:
    """A value on its way through the program: the real value, its fields, or its items where it is a tuple."""

    value: Any
    fields: tuple[Field, ...] = ()
    items: "tuple[Traced, ...] | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The real value's shape."""
        return tuple(self.value.shape)


def compact(labels: Tensor) -> Tensor:
    """Labels with every constant axis cut to size 1."""
    for axis in range(labels.dim()):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """A 1-d label vector laid along one of `dims` axes."""
    return vector.reshape([-1 if a == axis else 1 for a in range(dims)])


class Labels:
    """The store of labels and of the ties between them."""

    def __init__(self) -> None:
        self.count = 1
        self._edges: list[tuple[Tensor, Tensor]] = []

    def fresh(self, n: int) -> Tensor:
        """`n` labels that nothing else carries."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Entries of two broadcastable label tensors become one label each."""
        first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        self._edges.append((first.reshape(-1), second.reshape(-1)))

    def fix(self, fields: Iterable[Field | Tensor]) -> None:
        """All labels in them become fixed."""
        for field in fields:
            labels = field.labels if isinstance(field, Field) else field
            self._edges.append((labels.reshape(-1), torch.zeros(1, dtype=torch.int64).expand(labels.numel())))

    def collapse(self, field: Field, axis: int | None = None) -> Field:
        """The field varying along one axis only (the outermost by default): labels along its other axes are tied."""
        keep = field.axes[0] if axis is None else axis
        base = field.labels
        for other in field.axes:
            if other != keep:
                base = base.narrow(other, 0, 1)
        self.tie(field.labels, base)
        return Field(base, field.soft)

    def tidy(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """Fields of one value made independent: on a shared axis soft ones give way and hard ones become fixed."""
        found = [field for field in fields if field.axes]
        kept: list[Field] = []
        for i, field in enumerate(found):
            rivals = [other for j, other in enumerate(found) if j != i and set(other.axes) & set(field.axes)]
            if not rivals:
                kept.append(field)
            elif field.soft:
                if any(other.soft for other in rivals) and all(other.soft for other in rivals):
                    self.fix([field])
            elif any(not other.soft for other in rivals):
                self.fix([field])
            else:
                kept.append(field)
        return tuple(kept)

    def settle(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """Every field varying along one axis."""
        return self.tidy(field if len(field.axes) <= 1 else self.collapse(field) for field in fields)

    def roots(self) -> IntArray:
        """The smallest label tied to each label, by vectorised hooking and pointer jumping; int64 [count]."""
        parent = np.arange(self.count)
        if not self._edges:
            return parent
        first = torch.cat([edge[0] for edge in self._edges]).numpy()
        second = torch.cat([edge[1] for edge in self._edges]).numpy()
        pairs = np.unique(np.stack([first, second], 1)[first != second], axis=0)
        first, second = pairs[:, 0], pairs[:, 1]
        self._edges = [(torch.from_numpy(first.copy()), torch.from_numpy(second.copy()))]
        while True:
            a, b = parent[first], parent[second]
            low, high = np.minimum(a, b), np.maximum(a, b)
            apart = low != high
            if not apart.any():
                return parent
            np.minimum.at(parent, high[apart], low[apart])
            while True:
                jumped = parent[parent]
                if (jumped == parent).all():
                    break
                parent = jumped


def vectors(fields: Sequence[Field]) -> dict[int, Tensor]:
    """Axis to 1-d labels, for settled fields."""
    return {field.axes[0]: field.labels.reshape(-1) for field in fields if field.axes}
