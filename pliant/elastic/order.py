"""Order: permuting units without changing the function, and the check that nothing else hangs on their order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pliant.core import seeded, tensors_of
from pliant.elastic.runner import Runner
from pliant.graph.analyse import Axis
from pliant.graph.graph import Graph
from pliant.graph.ir import Node, Ref, evaluated, writes_state
from pliant.graph.labels import IntArray

Permutations = Mapping[int, IntArray]
"""Group to the new order of its units: position r gets the unit `permutation[r]`."""


def moved_index(axis: Axis, permutations: Permutations) -> IntArray | None:
    """Where each index of an axis takes its content from; None where nothing moves. int64 [size]."""
    index = np.arange(len(axis.group))
    moved = False
    for group, permutation in permutations.items():
        places = np.flatnonzero(axis.group == group)
        if len(places):
            order = places[np.argsort(axis.rank[places], kind="stable")].reshape(len(permutation), -1)
            index[order] = order[permutation]
            moved = True
    return index if moved else None


def permuted(graph: Graph, states: Mapping[str, Tensor], permutations: Permutations,
             leave: tuple[str, int] | None = None) -> dict[str, Tensor]:  # fmt: skip
    """Copies of state tensors with the units in a new order.

    Args:
        graph: the traced network.
        states: tensors by name.
        permutations: new orders.
        leave: a (state, axis) to leave out, for the control that shows that this axis matters.
    """
    result = {}
    for name, tensor in states.items():
        for a, axis in graph.state_axes.get(name, {}).items():
            index = moved_index(axis, permutations)
            if index is not None and (name, a) != leave:
                tensor = tensor.index_select(a, torch.from_numpy(index).to(tensor.device))
        result[name] = tensor
    return result


def cycles(units: Sequence[int], seed: int = 0) -> dict[int, IntArray]:
    """For each group a random permutation that leaves no unit in its place."""
    generator = seeded(seed, "permutation")
    found = {}
    for group, n in enumerate(units):
        order = torch.randperm(n, generator=generator).numpy()
        permutation = np.empty(n, dtype=np.int64)
        permutation[order] = np.roll(order, 1)
        found[group] = permutation
    return found


def reorderings(graph: Graph) -> dict[int, IntArray]:
    """`cycles` for the groups whose units can change places."""
    return {g: order for g, order in cycles(graph.analysis.units).items() if not graph.groups[g].ordered}


class PermutationCheck:
    """Runs a graph in double precision with its units in different orders and compares the results.

    Where an operator knows single precision only, that is what runs.

    Attributes:
        dtype: float64 or float32.
        tolerance: the largest relative change that reordering may make in that precision.
    """

    def __init__(self, graph: Graph) -> None:
        try:
            self._prepare(graph, torch.float64, 1e-9)
        except (RuntimeError, NotImplementedError):
            self._prepare(graph, torch.float32, 1e-4)

    def _prepare(self, graph: Graph, dtype: torch.dtype, tolerance: float) -> None:
        self.graph, self.dtype, self.tolerance = graph, dtype, tolerance
        self.runner = Runner(graph, dtype=dtype)
        self.states = {name: _cast(tensor.detach(), dtype) for name, tensor in graph.states.items()}
        kinds = {node.name: node for node in graph.program}
        written = [kinds[node.args[0].name] for node in graph.program if writes_state(node) and _plain_ref(node)]
        self.written = {node.target for node in written if node.kind == "state"}
        self.inputs = [_cast(value, dtype) for value in graph.inputs]
        self.modules = evaluated(graph.program, dtype).opaque
        self.reference = self.run({})

    def run(self, permutations: Permutations, leave: tuple[str, int] | None = None) -> list[Tensor]:
        """The outputs for units in a new order."""
        fresh = {name: tensor.clone() if name in self.written else tensor for name, tensor in self.states.items()}
        states = permuted(self.graph, fresh, permutations, leave)
        counts = self.graph.counts({})
        sizes = [patch.value(counts) for patch in self.graph.patches]
        with torch.no_grad(), torch.random.fork_rng(), _made_in(self.dtype):
            torch.manual_seed(0)
            weights, spans = [states[name] for name in self.runner.states], [True] * len(self.graph.spans)
            output = self.runner(self.inputs, weights, sizes, spans, False, self.modules)
        return tensors_of(output)

    def error(self, permutations: Permutations, leave: tuple[str, int] | None = None) -> float:
        """Largest difference to the original order, relative to the largest output."""
        worst = 0.0
        for new, old in zip(self.run(permutations, leave), self.reference, strict=True):
            if old.numel() and old.is_floating_point():
                scale = max(1.0, float(old.abs().max()))
                worst = max(worst, float((new - old).abs().max()) / scale)
        return worst

    def unsound(self) -> list[int]:
        """Groups whose units cannot be reordered: empty where the analysis is right."""
        permutations = reorderings(self.graph)
        if not permutations or self.error(permutations) <= self.tolerance:
            return []
        alone = [g for g, p in permutations.items() if not self.error({g: p}) <= self.tolerance]
        return alone or list(permutations)  # where only a combination fails, no group can be trusted


def _plain_ref(node: Node) -> bool:
    return bool(node.args) and isinstance(node.args[0], Ref)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(dtype.to_complex())
    return value.to(dtype) if value.is_floating_point() else value


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that the network makes without naming a precision get this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def magnitude(graph: Graph, states: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Importance of each unit: the sum over all weights it touches of its norm relative to the mean unit's norm.

    The group form of the magnitude criterion ("DepGraph: Towards Any Structural Pruning", section 3.4). Vectors
    (biases, statistics) do not count. Returns float64 [units] for each group whose units can change places; larger is
    more important.
    """
    scores: dict[int, Tensor] = {}
    for g, group in enumerate(graph.groups):
        if group.ordered:
            continue
        total = torch.zeros(group.units, dtype=torch.float64)
        for name, a in group.where:
            tensor = states[name].detach()
            if name not in graph.parameters or (tensor.dim() < 2 and any(states[n].dim() > 1 for n, _ in group.where)):
                continue
            axis = graph.state_axes[name][a]
            squares = tensor.double().pow(2).movedim(a, 0).reshape(tensor.shape[a], -1).sum(1).cpu()
            places = torch.from_numpy(np.flatnonzero(axis.group == g))
            ranks = torch.from_numpy(axis.rank[axis.group == g])
            norms = torch.zeros(group.units, dtype=torch.float64).index_add_(0, ranks, squares[places]).sqrt()
            total += norms / norms.mean().clamp_min(1e-12)
        scores[g] = total
    return scores
