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


@dataclass(frozen=True)
class Domain:
    """What the integers of a value stand for on an axis of which some indices may go.

    Args:
        labels: of that axis, int64 `[n]`.
        kind: "index": each entry is an index along the axis. "place": an index that was found by its place (ties
            between equal entries). "bounds": entries are ends of runs along the axis. "count": 0, 1, 2, ... up to a
            number that depends on the batch. "order": the permutation that sorted the axis. "tally": how many entries
            of the sorted axis have each index.
    """

    labels: Tensor
    kind: str = "index"

    @property
    def strict(self) -> bool:
        """Whether a use of the integers that nobody follows would be wrong for fewer indices."""
        return self.kind in ("index", "place", "bounds")

    @property
    def movable(self) -> bool:
        """Whether each entry means the same wherever it is put."""
        return self.kind in ("index", "place")

    def fits(self, n: int) -> bool:
        """Whether entries are indices along an axis of `n`."""
        return self.kind == "index" and self.labels.numel() == n


@dataclass
class Traced:
    """A value on its way through the program: the real value, its fields, or its items where it is a tuple."""

    value: Any
    fields: tuple[Field, ...] = ()
    items: "tuple[Traced, ...] | None" = None
    domain: Domain | None = None

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
        self.inner = ""
        """What was asked for of the call at work: "head_dim" or "channels" where the inner units bend, else nothing."""
        self.losses = 0
        """How often the axis that is preferred could not bend."""
        self.place = ""
        """The node at work: what becomes fixed now, becomes so on its account."""
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._fixes: list[tuple[Tensor, str]] = []
        self.floors: list[tuple[Tensor, int]] = []
        """Labels of an axis of which at least so many indices must stay."""
        self.orders: list[tuple[Tensor, Tensor]] = []
        """Labels of an axis that was sorted by indices along another axis, and the labels of that axis: whoever cares
        for the order along the first cares for the order along the second."""

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
            self._fixes.append((labels.reshape(-1), self.place))

    def release(self, traced: Traced) -> None:
        """The integers of a value are put to a use that nobody follows: what they stand for becomes fixed."""
        domain = traced.domain
        if domain is not None and domain.strict:
            self.fix([domain.labels])
            n = domain.labels.numel()  # a counter's own axis is as good as unlabelled then
            own = [f.labels.numel() == n and torch.equal(f.labels.reshape(-1), domain.labels) for f in traced.fields]
            traced.fields = tuple(f for f, mine in zip(traced.fields, own, strict=True) if not mine)
            traced.domain = None

    def broken_orders(self, roots: IntArray, held: IntArray) -> bool:
        """Fix what was sorted by, where something else hangs on the sorted order.

        Args:
            roots: of all labels.
            held: labels of parameters and buffers.

        Returns:
            Whether there were any, so that roots have changed.
        """
        lines = [roots[order.numpy()] for order, _ in self.orders]
        if not lines:
            return False
        seen, times = np.unique(np.concatenate(lines), return_counts=True)
        taken = np.concatenate([seen[times > 1], roots[held], np.zeros(1, dtype=np.int64)])
        broken = [bool(np.isin(line, taken).any()) for line in lines]
        self.fix(labels for pair, bad in zip(self.orders, broken, strict=True) if bad for labels in pair)
        self.orders = [pair for pair, bad in zip(self.orders, broken, strict=True) if not bad]
        return any(broken)

    def collapse(self, field: Field, axis: int | None = None) -> Field:
        """The field varying along one axis only (by default `prefer`): labels along its other axes are tied."""
        keep = self.prefer(field.axes) if axis is None else axis
        self.losses += keep != self.prefer(field.axes)
        base = field.labels
        for other in field.axes:
            if other != keep:
                base = base.narrow(other, 0, 1)
        self.tie(field.labels, base)
        return Field(base, field.soft)

    def prefer(self, axes: Sequence[int]) -> int:
        """Which of several axes bends where only one can: the outermost (a unit is a head), or what was asked for."""
        return axes[-1 if self.inner == "head_dim" else 0]

    def tidy(self, fields: Iterable[Field], *, merged: bool = False) -> tuple[Field, ...]:
        """Fields of one value made independent: on a shared axis soft ones give way and hard ones become fixed.

        Where that axis was made of several (`merged`), the first hard one can stay: it repeats along the others.
        """
        found = [field for field in fields if field.axes]
        kept: list[Field] = []
        hard: set[int] = set()
        for i, field in enumerate(found):
            rivals = [other for j, other in enumerate(found) if j != i and set(other.axes) & set(field.axes)]
            if not rivals:
                kept.append(field)
            elif field.soft:
                if any(other.soft for other in rivals) and all(other.soft for other in rivals):
                    self.fix([field])
            elif any(not other.soft for other in rivals) and (not merged or hard & set(field.axes)):
                self.fix([field])
            else:
                kept.append(field)
                hard |= set(field.axes)
        return tuple(kept)

    def settle(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """Every field varying along one axis."""
        return self.tidy(field if len(field.axes) <= 1 else self.collapse(field) for field in fields)

    def roots(self) -> IntArray:
        """The smallest label tied to each label; int64 [count]."""
        first, second = self._pairs()
        fixed = np.concatenate([labels.numpy() for labels, _ in self._fixes]) if self._fixes else first[:0]
        return self._joined(np.concatenate([first, fixed]), np.concatenate([second, np.zeros_like(fixed)]))

    def blame(self) -> tuple[IntArray, dict[int, str]]:
        """Roots as if nothing were fixed, and for those of them that are, the node that was the first to do so."""
        first, second = self._pairs()
        free = (first != 0) & (second != 0)
        roots = self._joined(first[free], second[free])
        places: dict[int, str] = {}
        for labels, place in self._fixes:
            for root in np.unique(roots[labels.numpy()]).tolist():
                places.setdefault(root, place)
        return roots, places

    def _pairs(self) -> tuple[IntArray, IntArray]:
        """Every tie once, both ends."""
        empty = [torch.zeros(0, dtype=torch.int64)]
        first = torch.cat([edge[0] for edge in self._edges] or empty).numpy()
        second = torch.cat([edge[1] for edge in self._edges] or empty).numpy()
        pairs = np.unique(np.stack([first, second], 1)[first != second], axis=0)
        self._edges = [(torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy()))]
        return pairs[:, 0], pairs[:, 1]

    def _joined(self, first: IntArray, second: IntArray) -> IntArray:
        """Connected components by vectorised hooking and pointer jumping: the smallest member of each one's own."""
        parent = np.arange(self.count)
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
