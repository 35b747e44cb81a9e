"""Matching: which unit of one network does the work of which unit of another one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pliant.core import PliantError, as_call
from pliant.diagram.text import graph_hash
from pliant.graph.analyse import Axis
from pliant.graph.graph import Graph
from pliant.graph.ir import refs
from pliant.graph.labels import IntArray
from pliant.surgery.moves import places_of
from pliant.surgery.program import values

BY = ("weights", "activations")
Orders = Mapping[int, IntArray]


def match(first: Graph, second: Graph, *, by: str = "weights", data: Iterable[Any] | None = None,
          sweeps: int = 100) -> dict[str, list[int]]:  # fmt: skip
    """The orders that align the units of one network with those of another: `permute(second, match(first, second))`.

    "weights" maximises the sum of products of all parameters (Git Re-Basin, Ainsworth et al. 2022, arXiv:2209.04836,
    algorithm 1: coordinate descent, each step a linear assignment). It differs from the paper in going through the
    groups from the inputs on instead of at random, at first with what is aligned already, so that it needs no seed.
    "activations" maximises the sum of the correlations of matched units over data (Li et al. 2016, arXiv:1511.07543).

    Args:
        first, second: two traces of one architecture.
        by: "weights" or "activations".
        data: batches of inputs, for "activations".
        sweeps: at most so many rounds through all groups.

    Returns:
        For each group whose units can change places, in the second network's names, the order of its units.

    Raises:
        ValueError: an unknown `by`, or activations without data.
        PliantError: the networks differ in more than their weights.
    """
    if by not in BY or sweeps < 1:
        raise ValueError(f"by must be one of {', '.join(BY)} and sweeps at least 1, got {by!r} and {sweeps}")
    if graph_hash(first) != graph_hash(second):
        raise PliantError(
            "the two networks differ in more than their weights", fix="match networks of one architecture"
        )
    if by == "activations":
        if data is None:
            raise ValueError("activations are compared on data: give batches of inputs")
        orders = _by_activations(first, second, data)
    else:
        orders = _by_weights(first, second, sweeps)
    return {group.name: orders[g].tolist() for g, group in enumerate(second.groups) if g in orders}


def _movable(graph: Graph) -> list[int]:
    return [g for g, group in enumerate(graph.groups) if not group.ordered]


def _assign(gains: NDArray[np.float64]) -> IntArray:
    """For every unit of the first network one of the second, so that the gains are largest together."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(gains, maximize=True)
    return np.asarray(columns, dtype=np.int64)


# -- by weights ------------------------------------------------------------------------------------------------------


class _Pair:
    """One parameter of both networks, and the movable groups on its axes."""

    def __init__(self, tensors: tuple[Tensor, Tensor], axes: Mapping[int, Axis], movable: Sequence[int]) -> None:
        self.first, self.second = (tensor.detach().double().cpu() for tensor in tensors)
        self.axes = axes
        self.places = {
            a: {g: places_of(axis, g) for g in movable if (axis.group == g).any()} for a, axis in axes.items()
        }

    def groups(self, but: int) -> set[int]:
        """Groups on all axes but one."""
        return {g for a, found in self.places.items() if a != but for g in found}

    def gains(self, axis: int, group: int, orders: Orders) -> NDArray[np.float64]:
        """Products of all pairs of units along an axis, with the other axes in their present orders; [units, units]."""
        moved = self.second
        for a, found in self.places.items():
            if a != axis:
                index = np.arange(moved.shape[a])
                for g, places in found.items():
                    if g in orders:
                        index[places.ravel()] = places[orders[g]].ravel()
                moved = moved.index_select(a, torch.from_numpy(index))
        places = self.places[axis][group]
        flat = torch.from_numpy(places.ravel())
        rows = [
            tensor.index_select(axis, flat).movedim(axis, 0).reshape(len(places), -1) for tensor in (self.first, moved)
        ]
        return (rows[0] @ rows[1].T).numpy()


def _by_weights(first: Graph, second: Graph, sweeps: int) -> dict[int, IntArray]:
    movable = _movable(second)
    seen: set[int] = set()
    pairs = []
    for mine, other in zip(first.program.states, second.program.states, strict=True):
        tensor = second.states[other.target]
        if other.target in second.parameters and id(tensor) not in seen:
            seen.add(id(tensor))
            pairs.append(_Pair((first.states[mine.target], tensor), second.state_axes[other.target], movable))
    orders: dict[int, IntArray] = {}

    def best(g: int, aligned: bool) -> IntArray:
        total = np.zeros((second.groups[g].units,) * 2)
        for pair in pairs:
            for a, found in pair.places.items():
                if g in found and (not aligned or pair.groups(a) <= orders.keys()):
                    total += pair.gains(a, g, orders)
        return _assign(total)

    left = list(movable)
    while left:  # at first only what stands between aligned units counts, from the inputs on
        g = max(left, key=lambda g: (_aligned(pairs, g, orders), -g))
        orders[g] = best(g, True)
        left.remove(g)
    for _ in range(sweeps):
        before = dict(orders)
        for g in movable:
            orders[g] = best(g, False)
        if all((orders[g] == before[g]).all() for g in movable):
            break
    return orders


def _aligned(pairs: Sequence[_Pair], g: int, orders: Orders) -> float:
    """How much of what a group touches can be compared already: entries of parameters."""
    entries = [(pair.first.numel(), pair.groups(a) <= orders.keys())
               for pair in pairs for a, found in pair.places.items() if g in found]  # fmt: skip
    return sum(n for n, known in entries if known) / max(1, sum(n for n, _ in entries))


# -- by activations --------------------------------------------------------------------------------------------------

Spot = tuple[str, int]
"""(node, axis)."""


class _Moments:
    """Sums from which the correlations of all pairs of units follow. Units have several entries each."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """x, y: float64 [entries, units, samples]."""
        parts = [x.sum(2), y.sum(2), x.square().sum(2), y.square().sum(2), x @ y.transpose(1, 2)]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.count += x.shape[2]

    def correlations(self) -> NDArray[np.float64]:
        """Mean over the entries; [units, units]; zero for what never varies."""
        mean_x, mean_y, square_x, square_y, product = (part / self.count for part in self.sums)
        spread = ((square_x - mean_x**2)[:, :, None] * (square_y - mean_y**2)[:, None, :]).clamp_min(0).sqrt()
        found = (product - mean_x[:, :, None] * mean_y[:, None, :]) / spread.clamp_min(1e-12)
        return torch.where(spread > 1e-12, found, 0.0).mean(0).numpy()


def _spots(graph: Graph) -> dict[int, list[Spot]]:
    """For each group where its activations are compared: where they are read, or else wherever they occur."""
    calls = {node.name for node in graph.program if node.kind == "call"}
    inner = _of_data(graph) & calls
    read = {(o.name, o.axis) for reading in graph.analysis.readings for o in reading.operands if o.name in inner}
    every = [(name, axis) for name, index, axis in graph.analysis.axes if name in inner and index == 0]
    found: dict[int, list[Spot]] = {}
    for g in _movable(graph):
        mine = [spot for spot in every if (graph.analysis.axes[spot[0], 0, spot[1]].group == g).any()]
        found[g] = [spot for spot in mine if spot in read] or mine
    return found


def _of_data(graph: Graph) -> set[str]:
    """Nodes whose values depend on the inputs."""
    found = {node.name for node in graph.program.inputs}
    for node in graph.program:
        if any(ref.name in found for ref in refs((node.args, node.kwargs))):
            found.add(node.name)
    return found


def _by_activations(first: Graph, second: Graph, data: Iterable[Any]) -> dict[int, IntArray]:
    spots = [_spots(graph) for graph in (first, second)]
    moments = {(g, i): _Moments() for g, found in spots[0].items() for i in range(len(found))}
    for batch in data:
        env = [
            values(graph, {name for found in own.values() for name, _ in found}, inputs=_inputs(graph, batch))
            for graph, own in zip((first, second), spots, strict=True)
        ]
        for (g, i), sums in moments.items():
            sums.add(*(_entries(graph, g, own[g][i], env[j][own[g][i][0]])
                       for j, (graph, own) in enumerate(zip((first, second), spots, strict=True))))  # fmt: skip
    if not any(sums.count for sums in moments.values()) and moments:
        raise PliantError("no batches to compare activations on", fix="give data at least one batch")
    return {g: _assign(sum((moments[g, i].correlations() for i in range(len(found))),
                           np.zeros((second.groups[g].units,) * 2)))
            for g, found in spots[1].items()}  # fmt: skip


def _inputs(graph: Graph, batch: Any) -> list[Any]:
    try:
        return list(graph.program.form.tensors(*as_call(batch)))
    except (TypeError, ValueError) as error:
        raise PliantError(f"a batch does not fit the network: {error}") from error


def _entries(graph: Graph, g: int, spot: Spot, value: Tensor) -> Tensor:
    """A group's activations, float64 [entries of a unit, units, samples].

    Axes of other groups, whose units are not aligned yet, are averaged over.
    """
    places = places_of(graph.analysis.axes[spot[0], 0, spot[1]], g)
    flat = torch.from_numpy(places.T.ravel().copy()).to(value.device)
    others = [a for a in range(value.dim()) if a != spot[1] and (spot[0], 0, a) in graph.analysis.axes]
    picked = value.index_select(spot[1], flat).double().cpu()
    picked = (picked.mean(others, keepdim=True) if others else picked).movedim(spot[1], 0)
    return picked.reshape(places.shape[1], places.shape[0], -1)
