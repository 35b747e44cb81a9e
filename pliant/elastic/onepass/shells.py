"""Shells: every elastic width cut at the same relative places, and what of an axis lies in which shell."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.core import PliantError
from pliant.core.parts import Index
from pliant.graph.analyse import Axis
from pliant.graph.graph import Graph
from pliant.graph.labels import IntArray


class Shells:
    """The shells of a network's groups: units `w[j-1]` to `w[j]` of a group are its shell j (1 to `count`).

    Args:
        graph: the traced network.
        groups: indices of the groups that are cut; all others stay whole.
        count: how many shells.

    Raises:
        PliantError: a group has fewer units than there are shells.
    """

    def __init__(self, graph: Graph, groups: Collection[int], count: int) -> None:
        self.graph, self.count = graph, count
        self.ends: dict[int, IntArray] = {}
        for g in sorted(groups):
            group = graph.groups[g]
            if group.units < count:
                raise PliantError(
                    f"has {group.units} units, too few for {count} shells",
                    where=group.name,
                    fix=f"shells={group.units}, or a wider network",
                )
            self.ends[g] = _ends(group.units, count)
        self._indices: dict[tuple[bytes, int, bool], Index] = {}

    def vector(self, axis: Axis | None) -> IntArray | None:
        """The shell of every index of an axis; None where no group is cut there.

        Indices outside of all groups read nothing elastic (else they were refused), so that they are in shell 1.
        """
        if axis is None:
            return None
        vector = np.ones(len(axis.group), dtype=np.int64)
        present = [g for g in np.unique(axis.group).tolist() if g in self.ends]
        for g in present:
            here = axis.group == g
            vector[here] = np.searchsorted(self.ends[g], axis.rank[here], side="right") + 1
        return vector if present else None

    def mixed(self, axis: Axis) -> bool:
        """Whether some indices of an axis belong to no group that is cut."""
        return not bool(np.isin(axis.group, list(self.ends)).all())

    def counts(self, width: int) -> IntArray:
        """Kept units of all groups at a width; int64 [groups]."""
        return self.graph.counts({g: int(ends[width - 1]) if width else 0 for g, ends in self.ends.items()})

    def index(self, vector: IntArray, shell: int, *, alone: bool = False) -> Index:
        """The indices in shells up to `shell`, or in that one alone; remembered."""
        key = (vector.tobytes(), shell, alone)
        if key not in self._indices:
            self._indices[key] = _index(vector == shell if alone else vector <= shell)
        return self._indices[key]

    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Group name to its units at every width."""
        return {self.graph.groups[g].name: tuple(ends.tolist()) for g, ends in self.ends.items()}


def _ends(units: int, count: int) -> IntArray:
    """Equal shares, rounded; at least one unit in each shell."""
    ends = [round(units * j / count) for j in range(count + 1)]
    for j in range(1, count + 1):
        ends[j] = min(max(ends[j], ends[j - 1] + 1), units - (count - j))
    return np.array(ends[1:], dtype=np.int64)


def _index(kept: NDArray[np.bool_]) -> Index:
    places = np.flatnonzero(kept)
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return slice(int(places[0]), int(places[-1]) + 1)
    return torch.from_numpy(places.astype(np.int64))
