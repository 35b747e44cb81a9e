"""Surgery on units: put them in another order, leave some out, copy, split and merge them, add new ones.

Every function takes a traced graph and a mapping from group names (`width:layer1.0.conv1`, as in `graph.groups`) to
what is done there, and returns a new graph. Tensors that do not change are shared with the old one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pliant.core import PliantError, Selection
from pliant.graph.graph import Graph
from pliant.graph.labels import IntArray
from pliant.surgery.moves import Floats, Fresh, Move, Moves, Plan, move_graph, move_states, plan, take
from pliant.surgery.program import demand_same, outputs
from pliant.surgery.spans import skip, span_of


def permute(graph: Graph, orders: Mapping[str, Sequence[int]]) -> Graph:
    """The same function with units in another order: place r gets the unit `order[r]`.

    Raises:
        ValueError: an unknown group, or an order that does not name every unit once.
        PliantError: the network tells these units apart, so that they cannot change places.
    """
    moves = {}
    for name, order in orders.items():
        g = group_index(graph, name)
        if sorted(order) != list(range(graph.groups[g].units)):
            raise ValueError(
                f"{name}: an order names each of its {graph.groups[g].units} units once, got {_list(order)}"
            )
        moves[g] = take(np.asarray(order, dtype=np.int64))
    return _exactly(graph, moves, Plan())


def remove(graph: Graph, kept: Selection | Mapping[str, Sequence[int] | bool]) -> Graph:
    """A really smaller graph: of every named group only the given units stay, in ascending order.

    Names of spans may be mapped to False: they are skipped. The result is what `Elastic.extract` gives for the same
    `Selection`.

    Raises:
        ValueError: an unknown name, or units that are not there.
        PliantError: the network tells these units apart.
    """
    selection = kept if isinstance(kept, Selection) else Selection(kept)
    spans = [name for name, value in selection.items() if isinstance(value, bool) and not value]
    moves, orders = {}, {}
    for name, value in selection.items():
        if isinstance(value, bool):
            span_of(graph, name)
            continue
        g = group_index(graph, name)
        units = graph.groups[g].units
        if value[-1] >= units:
            raise ValueError(f"{name} has the units 0 to {units - 1}, got {value[-1]}")
        moves[g] = take(np.array(value, dtype=np.int64))
        if value != tuple(range(len(value))):
            orders[g] = take(np.array([*value, *(u for u in range(units) if u not in set(value))], dtype=np.int64))
    if orders:
        reordered = outputs(graph, {**graph.states, **move_states(graph, orders, Plan(), Fresh())})
        problem = "tells these units apart, so that they cannot change places"
        demand_same(graph, reordered, _names(graph, orders), problem)
    smaller = move_graph(graph, moves, Plan(), Fresh())[0] if moves else graph
    return skip(smaller, spans) if spans or not moves else smaller


def duplicate(graph: Graph, units: Mapping[str, Sequence[int]]) -> Graph:
    """The same function with copies of units behind the last ones; what reads a unit is shared by its copies.

    Function-preserving widening (Net2Net, Chen et al. 2016, arXiv:1511.05641). A unit named k times is copied k times.
    Where an operator averages over the units (layer normalisation), all must be copied equally often.

    Raises:
        ValueError: an unknown group or unit.
        PliantError: the network combines these units in a way that copies would change.
    """
    moves = {}
    for name, chosen in units.items():
        g = group_index(graph, name)
        n = graph.groups[g].units
        copies = _units(name, chosen, n)
        times = 1 + np.bincount(copies, minlength=n)
        order = np.concatenate([np.arange(n), copies]).astype(np.int64)
        moves[g] = take(order, 1.0 / times[order])
    return _exactly(graph, moves, plan(graph, moves, exact=True))


def split(graph: Graph, shares: Mapping[str, Mapping[int, Sequence[float]]], *, noise: float = 0.0,
          generator: torch.Generator | None = None) -> Graph:  # fmt: skip
    """As `duplicate`, with given shares: unit u becomes `len(shares[u])` units, the first in its place.

    Args:
        graph: a traced network; it is not changed.
        shares: for each group, unit to the shares of what reads it; they add up to one.
        noise: standard deviation of what is added to the weights that make the parts, relative to each tensor's own.
            It breaks the symmetry that gradients would never break; the function is then only about the same.
        generator: of the noise.

    Raises:
        ValueError: an unknown group or unit, shares that do not add up to one, noise without a generator.
        PliantError: the network combines these units in a way that copies would change.
    """
    if noise and generator is None:
        raise ValueError("noise needs a generator, so that the result can be had again")
    moves = {}
    for name, parts in shares.items():
        g = group_index(graph, name)
        n = graph.groups[g].units
        _units(name, list(parts), n)
        order, share = list(range(n)), [1.0] * n
        for unit, own in parts.items():
            if not own or abs(sum(own) - 1) > 1e-6:
                raise ValueError(f"{name}: the shares of unit {unit} must add up to 1, got {list(own)}")
            share[unit] = own[0]
            order += [unit] * (len(own) - 1)
            share += own[1:]
        split_units = tuple(i for i, unit in enumerate(order) if unit in parts)
        moves[g] = take(np.array(order, dtype=np.int64), np.array(share), split_units)
    weighted = plan(graph, moves, exact=True)
    exact = _exactly(graph, moves, weighted)
    return move_graph(graph, moves, weighted, Fresh(generator, noise))[0] if noise else exact


def merge(graph: Graph, clusters: Mapping[str, Sequence[Sequence[int]]], *,
          weights: Mapping[str, Sequence[float]] | None = None) -> Graph:  # fmt: skip
    """Units become one: what makes them is averaged, what reads them is summed.

    Exact where the units of a cluster are identical, as after `split`; else the better the more alike they are.

    Args:
        graph: a traced network; it is not changed.
        clusters: for each group lists of units; each list becomes one unit, in the place of its first one.
        weights: for each group a weight of every unit in the average; equal ones by default.

    Raises:
        ValueError: an unknown group or unit, a unit in two clusters, weights that do not fit.
    """
    moves = {}
    for name, lists in clusters.items():
        g = group_index(graph, name)
        n = graph.groups[g].units
        inside = _units(name, [unit for cluster in lists for unit in cluster], n)
        if len(set(inside.tolist())) < len(inside) or not all(len(cluster) for cluster in lists):
            raise ValueError(f"{name}: clusters hold at least one unit each and no unit twice, got {_list(lists)}")
        given = np.asarray((weights or {}).get(name, np.ones(n)), dtype=np.float64)
        if given.shape != (n,) or not (given > 0).all():
            raise ValueError(f"{name}: {n} positive weights are needed, got {_list(given.tolist())}")
        moves[g] = _pooled(n, lists, given)
    return move_graph(graph, moves, plan(graph, moves, exact=False), Fresh())[0]


def _pooled(n: int, clusters: Sequence[Sequence[int]], weights: Floats) -> Move:
    head = np.arange(n)
    for cluster in clusters:
        head[list(cluster)] = min(cluster)
    firsts, dst = np.unique(head, return_inverse=True)
    total = np.bincount(dst, weights=weights)
    members = np.bincount(dst).astype(np.float64)
    return Move(len(firsts), np.arange(n), dst, weights / total[dst], np.ones(n), members)


def append(graph: Graph, units: Mapping[str, int], *, generator: torch.Generator) -> Graph:
    """The same function with new units that nothing reads yet: their readers' weights are zero.

    What makes them is drawn as wide as the tensor's other entries; vectors (biases, norm scales, statistics) take the
    mean of the other units.

    Raises:
        ValueError: an unknown group, or a negative number of units.
        PliantError: an operator averages over these units, so that any new one would show.
    """
    moves = {}
    for name, count in units.items():
        g = group_index(graph, name)
        if count < 0:
            raise ValueError(f"{name}: cannot append {count} units")
        moves[g] = take(np.concatenate([np.arange(graph.groups[g].units), np.full(count, -1)]))
    return _exactly(graph, moves, plan(graph, moves, exact=True), Fresh(generator))


# -- what all share --------------------------------------------------------------------------------------------------


def group_index(graph: Graph, name: str) -> int:
    """The number of a group whose units can change places.

    Raises:
        ValueError: there is no such group.
        PliantError: its units have places that they cannot leave.
    """
    names = [group.name for group in graph.groups]
    if name not in names:
        raise ValueError(f"no group {name!r}; groups are {', '.join(names) or '(none)'}")
    if graph.groups[names.index(name)].ordered:
        raise PliantError("its units have places that they cannot leave", where=name, fix="choose another group")
    return names.index(name)


def _units(name: str, chosen: Sequence[int], n: int) -> IntArray:
    if not all(isinstance(unit, int | np.integer) and 0 <= unit < n for unit in chosen):
        raise ValueError(f"{name} has the units 0 to {n - 1}, got {_list(chosen)}")
    return np.array(list(chosen), dtype=np.int64)


def _list(values: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in list(values)[:8])
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"


def _names(graph: Graph, moves: Moves) -> str:
    return ", ".join(graph.groups[g].name for g in moves)


def _exactly(graph: Graph, moves: Moves, weighted: Plan, fresh: Fresh | None = None) -> Graph:
    """The moved graph, once it has been seen to compute what the old one does.

    The rules say what is exact. That is not taken on trust, because an operator may combine units in a way that its
    rule does not say: both graphs are run on the example in double precision, before the new tensors are rounded.
    """
    moved, wide = move_graph(graph, moves, weighted, fresh or Fresh())
    got = outputs(moved, {**moved.states, **wide})
    demand_same(graph, got, _names(graph, moves), "combines these units in a way that does not stay the same")
    return moved
