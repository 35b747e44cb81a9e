"""Moves: how the units of a changed group come from those that were there, carried out on every tensor they touch.

A unit is *made* where a tensor gives it out and *read* where a tensor's entries for it are summed away (the columns of
a matrix). Copying a unit c times leaves the function alone where what is made is copied and what is read is divided by
c (Net2Net, Chen et al. 2016, arXiv:1511.05641, equation for U). Which tensor reads which axis is recorded by the
operators' rules; where the tensor that would have to be divided is also made (tied weights) or there is none
(a product of two activations), the value that is read is multiplied by a constant instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.graph.analyse import Axis, Operand, Reading
from pliant.graph.graph import Graph
from pliant.graph.ir import Node, Ref, refs, substitute
from pliant.graph.labels import IntArray, along
from pliant.surgery.program import carries, remake, renumbered, unique

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Move:
    """The units of one group, new from old: new unit `dst[e]` takes part of old unit `src[e]`.

    A new unit that nothing leads to is fresh: what makes it is drawn anew, what reads it is zero.

    Args:
        units: how many there are afterwards.
        src, dst: int64 [edges].
        made, read: weights of the edges in tensors that make units and that read them, float64 [edges].
        scale: for every new unit what a read value is multiplied by where no tensor can be, float64 [units].
        noisy: new units that get noise where they are made.
    """

    units: int
    src: IntArray
    dst: IntArray
    made: Floats
    read: Floats
    scale: Floats
    noisy: tuple[int, ...] = ()

    @property
    def fresh(self) -> IntArray:
        """New units that come from nowhere."""
        return np.setdiff1d(np.arange(self.units), self.dst)


def take(order: IntArray, shares: Floats | None = None, noisy: tuple[int, ...] = ()) -> Move:
    """New unit r is old unit `order[r]` (-1: fresh), and its readers get a share of the old one's."""
    old = np.flatnonzero(order >= 0)
    scale = np.where(order >= 0, 1.0 if shares is None else shares, 0.0)
    return Move(len(order), order[old], old, np.ones(len(old)), scale[old], scale, noisy)


Moves = Mapping[int, Move]
"""By group."""


# -- lines: one axis -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edges:
    """A `Move` of all groups along one axis, entry by entry; `fresh` are new entries without a source."""

    size: int
    src: Tensor
    dst: Tensor
    made: Tensor
    read: Tensor
    scale: Tensor
    fresh: Tensor
    models: Tensor
    noisy: Tensor


def places_of(axis: Axis, g: int) -> IntArray:
    """Where each unit of a group lies on an axis, int64 [units, occurrences]."""
    found = np.flatnonzero(axis.group == g)
    units = len(np.unique(axis.rank[found]))
    return found[np.argsort(axis.rank[found], kind="stable")].reshape(units, -1)


def _runs(places: IntArray) -> list[IntArray]:
    """Consecutive stretches of ascending places."""
    return np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)


def lay(axis: Axis, moves: Moves) -> Axis:
    """The axis after a move: units that go leave gaps that close, new ones lie behind the last, as the last one does.

    Raises:
        PliantError: the units do not lie in the same way each, so that there is no telling where a new one belongs.
    """
    n = len(axis.group)
    keep = np.ones(n, dtype=bool)
    columns = [np.arange(n), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), axis.group, axis.rank]
    pieces = [columns]
    for g in _groups_on(axis, moves):
        places = places_of(axis, g)
        old, new = len(places), moves[g].units
        keep &= ~((axis.group == g) & (axis.rank >= new))
        last = _runs(places[-1])
        if new > old and [len(run) for run in last] != [len(run) for run in _runs(places[0])]:
            raise PliantError(
                "its units lie in different ways along an axis, so that no more fit in", where=f"group {g}"
            )
        for run in last if new > old else ():
            for r in range(old, new):
                size = len(run)
                pieces.append([np.full(size, run[-1]), np.full(size, r - old + 1), np.arange(size),
                               np.full(size, g), np.full(size, r)])  # fmt: skip
    pieces[0] = [column[keep] for column in columns]
    anchor, turn, offset, group, rank = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((offset, turn, anchor))
    return Axis(group[order], rank[order])


def _groups_on(axis: Axis, moves: Moves) -> list[int]:
    return [g for g in np.unique(axis.group).tolist() if g in moves]


def edges_of(axis: Axis, moves: Moves) -> Edges:
    """Where every entry of the new axis comes from."""
    new = lay(axis, moves)
    changed = _groups_on(axis, moves)
    stays, stood = ~np.isin(new.group, changed), ~np.isin(axis.group, changed)
    parts = [[np.flatnonzero(stood), np.flatnonzero(stays), np.ones(stays.sum()), np.ones(stays.sum())]]
    scale = np.ones(len(new.group))
    fresh, models, noisy = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for g in changed:
        before, after, move = places_of(axis, g), places_of(new, g), moves[g]
        each = before.shape[1]
        parts.append(
            [before[move.src].ravel(), after[move.dst].ravel(), move.made.repeat(each), move.read.repeat(each)]
        )
        scale[after.ravel()] = move.scale.repeat(each)
        fresh.append(after[move.fresh].ravel())
        models.append(before.ravel() if len(move.fresh) else models[0])
        noisy.append(after[list(move.noisy)].ravel())
    src, dst, made, read = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    late = (torch.from_numpy(np.concatenate(part)).long() for part in (fresh, models, noisy))
    return Edges(len(new.group), src, dst, made, read, torch.from_numpy(scale), *late)


def gather(tensor: Tensor, axis: int, edges: Edges, weights: Tensor) -> Tensor:
    """A tensor along a new axis: weighted sums of what leads to each entry; an exact copy where nothing is summed."""
    device = tensor.device
    once = int(torch.bincount(edges.dst).max()) == 1
    if not tensor.is_floating_point() or (once and bool((weights == 1).all())):
        source = torch.zeros(edges.size, dtype=torch.int64)
        source[edges.dst.flip(0)] = edges.src.flip(0)
        return tensor.index_select(axis, source.to(device))
    weighted = tensor.index_select(axis, edges.src.to(device)).double()
    weighted = weighted * along(weights, axis, tensor.dim()).to(device)
    shape = [edges.size if a == axis else n for a, n in enumerate(tensor.shape)]
    found = torch.zeros(shape, dtype=torch.float64, device=device)
    return found.index_add_(axis, edges.dst.to(device), weighted).to(tensor.dtype)


# -- who reads what --------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What has to be weighted so that sums over units stay what they are.

    Args:
        read: (tensor id, axis) whose entries are weighted.
        factors: operands of calls that are multiplied instead.
    """

    read: set[tuple[int, int]] = field(default_factory=set)
    factors: list[tuple[str, Operand]] = field(default_factory=list)


def _uses(graph: Graph) -> dict[int, set[tuple[str, int]]]:
    """For each tensor the (call, place of the operand) that its entries go into, seen through shape operators."""
    owner: dict[str, int] = {}
    found: dict[int, set[tuple[str, int]]] = {}
    for node in graph.program:
        if node.kind == "state":
            owner[node.name] = id(graph.states[node.target])
        for place, ref in enumerate(refs((node.args, node.kwargs))):
            if ref.name in owner and place == 0 and carries(node):
                owner[node.name] = owner[ref.name]
            elif ref.name in owner and node.packet != "aten.sym_size":
                found.setdefault(owner[ref.name], set()).add((node.name, place))
    return found


def plan(graph: Graph, moves: Moves, *, exact: bool) -> Plan:
    """Which tensors are weighted where they read the moved units, and which values are multiplied.

    Raises:
        PliantError: `exact` is asked for, and a call combines the units in a way that copies would change.
    """
    uses = _uses(graph)
    readers: dict[tuple[int, int], set[tuple[str, int]]] = {}
    sums: list[Reading] = []
    for reading in graph.analysis.readings:
        if reading.how == "sum":
            for operand in reading.operands:
                if operand.origin is not None:
                    origin = (id(graph.states[operand.origin[0]]), operand.origin[1])
                    readers.setdefault(origin, set()).add((reading.node, operand.place))
        axes = [graph.analysis.axes.get((operand.name, 0, operand.axis)) for operand in reading.operands]
        touched = [axis for axis in axes if axis is not None and _groups_on(axis, moves)]
        if touched and reading.how == "sum":
            sums.append(reading)
        elif touched and exact:
            _check(graph, reading, touched[0], moves)
    found = Plan()
    for reading in sums:
        own = [key for operand in reading.operands if (key := _whole(graph, operand, reading, uses, readers))]
        taken = [key for key in own if key in found.read]
        known = [operand for operand in reading.operands if (operand.name, 0, operand.axis) in graph.analysis.axes]
        if not taken and own:
            found.read.add(own[0])
        elif not taken and known:
            found.factors.append((reading.node, known[0]))
        elif len(taken) > 1:
            raise PliantError("sums over units in a way that cannot be weighted", where=_where(graph, reading.node))
    return found


def _whole(graph: Graph, operand: Operand, reading: Reading, uses: Mapping[int, set[tuple[str, int]]],
           readers: Mapping[tuple[int, int], set[tuple[str, int]]]) -> tuple[int, int] | None:  # fmt: skip
    """The (tensor id, axis) that an operand is, where that tensor is used for nothing but reading along this axis."""
    if operand.origin is None:
        return None
    key = (id(graph.states[operand.origin[0]]), operand.origin[1])
    all_uses = uses.get(key[0], set())
    return key if (reading.node, operand.place) in all_uses and all_uses <= readers[key] else None


def _where(graph: Graph, name: str) -> str:
    return next(node.place for node in graph.program if node.name == name)


def _check(graph: Graph, reading: Reading, axis: Axis, moves: Moves) -> None:
    """A call that does not sum may see copies only where it does not matter to it."""
    many = np.ones(len(axis.group), dtype=np.int64)
    fresh = False
    for g in _groups_on(axis, moves):
        here = axis.group == g
        move = moves[g]
        many[here] = np.bincount(move.src, minlength=int(axis.rank[here].max()) + 1)[axis.rank[here]]
        fresh |= bool(len(move.fresh))
    alike = bool((many == many[0]).all()) and not fresh
    if (reading.how == "mean" and alike) or (reading.how == "max" and not fresh):
        return
    names = ", ".join(graph.groups[g].name for g in _groups_on(axis, moves))
    if reading.how == "mean":
        problem = f"averages over the units of {names}, so that all of its axis must be copied equally often"
        raise PliantError(problem, where=_where(graph, reading.node), fix="copy every unit the same number of times")
    raise PliantError(f"combines the units of {names} by more than a sum: more of them would change its result",
                      where=_where(graph, reading.node))  # fmt: skip


# -- carrying out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fresh:
    """Where new values come from: a generator, and the standard deviation of noise relative to each tensor's own."""

    generator: torch.Generator | None = None
    noise: float = 0.0

    def draw(self, tensor: Tensor, shape: list[int]) -> Tensor:
        """Normal numbers, as wide as a tensor's entries are."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (drawn * float(tensor.double().std())).to(tensor)


def move_states(graph: Graph, moves: Moves, weighted: Plan, fresh: Fresh) -> dict[str, Tensor]:
    """Every tensor that a move changes, by all of its names, in double precision where it is floating."""
    done: dict[int, Tensor] = {}
    found = {}
    for name, tensor in graph.states.items():
        axes = {a: axis for a, axis in graph.state_axes[name].items() if _groups_on(axis, moves)}
        if axes and id(tensor) not in done:
            new = tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
            for a in sorted(axes, key=lambda a: (id(tensor), a) in weighted.read):  # what is read last: zeros stay zero
                new = _moved(new, a, edges_of(axes[a], moves), (id(tensor), a) in weighted.read, fresh)
            done[id(tensor)] = new
        if axes:
            found[name] = done[id(tensor)]
    return found


def _moved(tensor: Tensor, axis: int, edges: Edges, reads: bool, fresh: Fresh) -> Tensor:
    new = gather(tensor, axis, edges, edges.read if reads else edges.made)
    if reads:
        index = edges.fresh.to(tensor.device)
        return new.index_fill(axis, index, 0) if len(index) else new
    for entries, noise in ((edges.fresh, 1.0), (edges.noisy, fresh.noise)):
        if not len(entries) or not noise or not tensor.is_floating_point():
            continue
        shape = [len(entries) if a == axis else n for a, n in enumerate(tensor.shape)]
        index = entries.to(tensor.device)
        if entries is edges.noisy:
            new = new.index_add(axis, index, fresh.draw(tensor, shape) * noise) if tensor.dim() > 1 else new
        elif tensor.dim() > 1:
            new = new.index_copy(axis, index, fresh.draw(tensor, shape))
        else:  # biases, norm scales, running statistics: what the other units have on the average
            new = new.index_fill(axis, index, float(tensor[edges.models.to(tensor.device)].double().mean()))
    return new


def move_graph(graph: Graph, moves: Moves, weighted: Plan, fresh: Fresh) -> tuple[Graph, dict[str, Tensor]]:
    """The graph after a move, with all its numbers, analysed anew; and the new tensors before they were rounded."""
    nodes = renumbered(graph, graph.counts({g: move.units for g, move in moves.items()}))
    wide = move_states(graph, moves, weighted, fresh)
    like = {name: graph.states[name] for name in wide}
    for node, operand in weighted.factors:
        name, scale = _multiply(graph, nodes, node, operand, moves)
        wide[name], like[name] = scale, next(iter(graph.states[name] for name in wide)).detach()
    done: dict[int, Tensor] = {}
    for name, tensor in wide.items():
        new = tensor.to(like[name].dtype).contiguous()
        new = nn.Parameter(new, like[name].requires_grad) if name in graph.parameters else new
        done.setdefault(id(tensor), new)
    states = {name: done[id(tensor)] for name, tensor in wide.items()}
    return remake(graph, nodes, graph.program.output, states=states), wide


def _multiply(graph: Graph, nodes: list[Node], reader: str, operand: Operand, moves: Moves) -> tuple[str, Tensor]:
    """Let an operand of a call be multiplied by a constant for every unit; the constant's name and value."""
    dims = len(graph.analysis.shapes[operand.name, 0])
    scale = edges_of(graph.analysis.axes[operand.name, 0, operand.axis], moves).scale
    i = next(i for i, node in enumerate(nodes) if node.name == reader)
    node = nodes[i]
    state = unique(f"{node.module}.shares" if node.module else "shares", {n.target for n in nodes if n.kind == "state"})
    names = {other.name for other in nodes}
    constant = Node(unique(f"{reader}_shares", names), "state", state)
    product = Node(unique(f"{reader}_shared", names), "call", "aten.mul.Tensor",
                   (Ref(operand.name), Ref(constant.name)), module=node.module, line=node.line)  # fmt: skip
    places = iter(range(10**6))
    swap = {operand.place: Ref(product.name)}
    args, kwargs = substitute((node.args, node.kwargs), lambda ref: swap.get(next(places), ref))
    nodes[i : i + 1] = [constant, product, replace(node, args=args, kwargs=kwargs)]
    return state, along(scale, operand.axis, dims)[(0,) * operand.axis]
