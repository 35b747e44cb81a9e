"""Networks that decide, run block by block on the tensors of a sub-network.

Rows are independent of each other: each goes its own way. Rows that wait at the same state are normalised together by
BatchNorm in training, as the rows of a batch are elsewhere.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.elastic.extract import attach, extract_module
from pliant.elastic.runner import Runner
from pliant.flow.explore import Arg, Const, In, Leaf, Scalar
from pliant.flow.joint import Joint, Stage, row_count
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Node, Program, Ref, refs

STEPS = 100_000
"""States that a row may visit."""
Normalise = Callable[[Node, list[Tensor], Sequence[Tensor | None]], list[Tensor]]
"""From a BatchNorm, the rows that wait there and its weight, bias, mean and variance to the normalised rows."""


class Walker:
    """Runs a joint graph as `Runner` runs a plain one: same call, same lists.

    Args:
        graph: all branches of a network that decides.
    """

    def __init__(self, graph: Joint) -> None:
        self.graph = graph
        self.states = [node.target for node in graph.program.states]
        self.inputs = [node.target for node in graph.program.inputs]
        place = {name: i for i, name in enumerate(self.states)}
        self._runners = [Runner(part) for part in graph.parts]
        self._places = [[place[name] for name in runner.states] for runner in self._runners]
        self._chains = [_Chain(part) if _norms(part) else None for part in graph.parts]
        self._rows = row_count(graph.example) is not None
        self._same = alike(graph)

    def __call__(self, inputs: Sequence[Any], weights: Sequence[Tensor | None], sizes: Sequence[int],
                 spans: Sequence[bool], training: bool, opaque: Any = None) -> Any:  # fmt: skip
        """What the network returns; for several rows as `together` puts it."""
        results = self.walk(inputs, weights, sizes, _trained if training else None, training=training)
        return results[0] if len(results) == 1 else together(results, merge=self._same)

    def walk(self, inputs: Sequence[Tensor], weights: Sequence[Tensor | None], sizes: Sequence[int],
             normalise: Normalise | None, *, training: bool = False) -> list[Any]:  # fmt: skip
        """What the network returns for each row.

        Args:
            inputs: one for each input, in order.
            weights: tensors in the order of `states`.
            sizes: the values of the graph's patches.
            normalise: does the BatchNorms; None where they use their running statistics.
            training: the live flag of all else.
        """
        rows = split(inputs) if self._rows else [list(inputs)]
        results: list[Any] = [None] * len(rows)
        waiting: dict[int, list[tuple[int, list[Tensor]]]] = {0: list(enumerate(rows))}
        for _ in range(STEPS):
            if not waiting:
                return results
            number = min(waiting)
            group = waiting.pop(number)
            stage = self.graph.stages[number]
            own = [weights[place] for place in self._places[number]]
            given = [values for _, values in group]
            for (row, _), values in zip(group, self._run(number, given, own, sizes, normalise, training), strict=True):
                if stage.value is None:
                    results[row] = ended(stage, values)
                else:
                    target, following = step(stage, side_of(stage, values), values, self.graph.stages)
                    waiting.setdefault(target, []).append((row, following))
        raise PliantError(f"a row took more than {STEPS} steps")

    def _run(self, number: int, rows: list[list[Tensor]], own: Sequence[Tensor | None], sizes: Sequence[int],
              normalise: Normalise | None, training: bool) -> list[list[Tensor]]:  # fmt: skip
        """Parameters and outputs of a state for rows that wait there."""
        chain, runner = self._chains[number], self._runners[number]
        if normalise is None or chain is None:
            return [[*values, *runner(values, own, sizes, (), training)] for values in rows]
        found = chain.run(rows, dict(zip(runner.states, own, strict=True)), sizes, normalise, training)
        return [[*values, *made] for values, made in zip(rows, found, strict=True)]

    def statistics(self, weights: Sequence[Tensor | None], sizes: Sequence[int], batches: Sequence[Sequence[Tensor]]
                   ) -> dict[str, Tensor]:  # fmt: skip
        """Means and variances that BatchNorms see on batches, by the names of their buffers; those never seen lack."""
        sums: dict[str, Tensor] = {}
        seen: dict[str, int] = {}

        def noted(node: Node, xs: list[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
            x = torch.cat(xs)
            if x.numel() // x.shape[1] < 2:
                return _normed(node, xs, given, training=False)
            dims = [axis for axis in range(x.dim()) if axis != 1]
            for ref, value in zip(node.args[3:5], (x.mean(dims), x.var(dims)), strict=True):
                name = targets[ref.name]
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(xs)
                seen[name] = seen.get(name, 0) + len(xs)
            return _normed(node, xs, (given[0], given[1], None, None), training=True)

        targets = {node.name: node.target for node in self.graph.program.states}
        with torch.no_grad():
            for batch in batches:
                self.walk(batch, weights, sizes, noted)
        return {name: total / seen[name] for name, total in sums.items()}


def _norms(part: Graph) -> list[Node]:
    """The BatchNorms that training makes use the batch's statistics."""
    return [n for n in part.program if n.packet == "aten.batch_norm" and n.args[5] == Ref(TRAINING) and n.args[3]]


def _normed(node: Node, xs: list[Tensor], given: Sequence[Tensor | None], *, training: bool) -> list[Tensor]:
    weight, bias, mean, var = given
    made = F.batch_norm(torch.cat(xs), mean, var, weight, bias, training, node.args[6], node.args[7])
    return list(torch.split(made, [len(x) for x in xs]))


def _trained(node: Node, xs: list[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
    """Rows by the statistics of those that wait together; a single value per channel has none and takes the running
    ones."""
    several = sum(x.numel() for x in xs) // xs[0].shape[1] > 1
    return _normed(node, xs, given, training=several)


class _Chain:
    """A block cut at its BatchNorms: between them every row runs alone."""

    def __init__(self, part: Graph) -> None:
        norms = {node.name for node in _norms(part)}
        self.inputs = [node.name for node in part.program.inputs]
        self.targets = {node.name: node.target for node in part.program.states}
        self.outputs = [ref.name for ref in part.program.output]
        self.links: list[tuple[Runner, list[str], list[str]] | Node] = []
        calls = [node for node in part.program if node.kind == "call"]
        begin = 0
        for place, node in enumerate([*calls, None]):
            if node is None or node.name in norms:
                self._link(part, calls[begin:place], calls[place:])
                begin = place + 1
                if node is not None:
                    self.links.append(node)

    def _link(self, part: Graph, calls: list[Node], later: list[Node]) -> None:
        if not calls:
            return
        made = {node.name for node in calls}
        read = {ref.name for node in calls for ref in refs((node.args, node.kwargs))} - {TRAINING}
        wanted = {ref.name for node in later for ref in refs((node.args, node.kwargs))} | set(self.outputs)
        inputs = sorted(read - made - set(self.targets))
        outputs = [node.name for node in calls if node.name in wanted]
        states = [node for node in part.program.states if node.name in read]
        link = copy.copy(part)
        nodes = [*[Node(name, "input", name) for name in inputs], *states, *calls]
        link.program = Program(nodes, tuple(Ref(name) for name in outputs), part.program.constants)
        self.links.append((Runner(link), inputs, outputs))

    def run(self, rows: list[list[Tensor]], own: Mapping[str, Tensor | None], sizes: Sequence[int],
            normalise: Normalise, training: bool) -> list[list[Tensor]]:  # fmt: skip
        """The block's outputs for each row."""
        values: list[dict[str, Any]] = [dict(zip(self.inputs, row, strict=True)) for row in rows]
        for link in self.links:
            if isinstance(link, Node):
                given = [None if ref is None else own[self.targets[ref.name]] for ref in link.args[1:5]]
                found = normalise(link, [env[link.args[0].name] for env in values], given)
                for env, one in zip(values, found, strict=True):
                    env[link.name] = one
                continue
            runner, inputs, outputs = link
            weights = [own[name] for name in runner.states]
            for env in values:
                made = runner([env[name] for name in inputs], weights, sizes, (), training)
                env.update(zip(outputs, made, strict=True))
        states: dict[str, Any] = {name: own[target] for name, target in self.targets.items()}
        return [[(states | env)[name] for name in self.outputs] for env in values]


# -- from state to state -----------------------------------------------------------------------------------------------


def place_of(arg: Arg, stage: Stage) -> int:
    """Where a value lies among a state's parameters and outputs."""
    assert not isinstance(arg, Const)  # has no place
    return arg.index if isinstance(arg, In) else arg.index + len(stage.params)


def side_of(stage: Stage, values: Sequence[Tensor]) -> int:
    """The number of the edge that a row takes.

    Raises:
        IndexError: no edge for the integer decided on.
    """
    assert stage.value is not None  # asked of deciding states alone
    value = values[place_of(stage.value, stage)]
    if stage.keys is None:
        return 0 if bool(value) else 1
    if int(value) not in stage.keys:
        raise IndexError(f"index {int(value)} is none of {sorted(stage.keys)}")
    return stage.keys.index(int(value))


def step(stage: Stage, side: int, values: Sequence[Tensor], stages: Sequence[Stage]) -> tuple[int, list[Tensor]]:
    """The next state and its parameters."""
    edge = stage.edges[side]
    kinds = stages[edge.target].kinds
    device = values[0].device if values else None

    def fetched(arg: Arg, dtype: torch.dtype) -> Tensor:
        if isinstance(arg, Const):
            return torch.tensor(arg.value, dtype=dtype, device=device)
        return values[place_of(arg, stage)]

    return edge.target, [fetched(arg, kind[0]) for arg, kind in zip(edge.args, kinds, strict=True)]


def ended(stage: Stage, values: Sequence[Tensor]) -> Any:
    """What a state returns, as the network does for one row.

    Raises:
        Exception: what the network raises there.
    """
    if stage.raised is not None:
        raise error_of(stage)

    def built(shape: Any) -> Any:
        if isinstance(shape, Leaf):
            return values[place_of(shape.arg, stage)]
        if isinstance(shape, Scalar):
            return values[place_of(shape.arg, stage)].item()
        kind, inner = next(iter(shape.items()))
        if kind == "dict":
            return {name: built(item) for name, item in inner.items()}
        if kind in ("list", "tuple"):
            items = [built(item) for item in inner]
            return items if kind == "list" else tuple(items)
        return inner

    return built(stage.returns)


def error_of(stage: Stage) -> Exception:
    """What the network raises in a state."""
    from pliant_runtime.steps import ERRORS  # brings onnxruntime

    kind, message = stage.raised or ("", "")
    return ERRORS.get(kind, RuntimeError)(message if kind in ERRORS else f"{kind}: {message}")


def split(inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Inputs of many rows as inputs of one row each.

    Raises:
        ValueError: no rows, or different numbers of them.
    """
    counts = {len(tensor) for tensor in inputs}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"inputs must have the same number of rows, at least one, got {sorted(counts)}")
    return [[tensor[n : n + 1] for tensor in inputs] for n in range(counts.pop())]


def alike(graph: Joint) -> bool:
    """Whether all ways return the same structure, so that the results of many rows can be one."""

    def told(shape: Any, stage: Stage) -> Any:
        if isinstance(shape, Leaf):
            place = place_of(shape.arg, stage)
            return graph.analysis.shapes[(*stage.params, *stage.outputs)[place], 0]
        if isinstance(shape, Scalar):
            return shape.kind
        kind, inner = next(iter(shape.items()))
        if kind == "py":
            return type(inner).__name__ if isinstance(inner, bool | int | float) else inner
        if kind == "dict":
            return kind, tuple((name, told(item, stage)) for name, item in inner.items())
        return kind, tuple(told(item, stage) for item in inner)

    ends = [stage for stage in graph.stages if stage.value is None and stage.raised is None]
    return len({repr(told(stage.returns, stage)) for stage in ends}) == 1


def together(results: Sequence[Any], *, merge: bool) -> Any:
    """The results of several rows.

    Args:
        results: one per row.
        merge: whether they have one structure: then tensors are joined along axis 0 and numbers become a tensor [N];
            else they come as a list.
    """
    first = results[0]
    if not merge:
        return list(results)
    if isinstance(first, Tensor):
        return torch.cat(list(results)) if first.dim() and first.shape[0] == 1 else torch.stack(list(results))
    if isinstance(first, bool | int | float):
        return torch.tensor(results)
    if isinstance(first, Mapping):
        return {name: together([each[name] for each in results], merge=True) for name in first}
    if isinstance(first, tuple | list):
        items = [together(list(each), merge=True) for each in zip(*results, strict=True)]
        return items if isinstance(first, list) else tuple(items)
    return first


# -- on its own --------------------------------------------------------------------------------------------------------


class Walked(nn.Module):
    """A sub-network of a network that decides, as a module of its own with the original's parameter names.

    It runs the blocks as the decisions fall. For several rows it returns what `together` makes of theirs.

    Args:
        graph: all branches.
        tensors: of the sub-network, by name.
        sizes: the values of the graph's patches.
        name: of the original's class.

    Attributes:
        walk_stages: how its states follow each other.
    """

    def __init__(self, graph: Joint, tensors: Mapping[str, Tensor], sizes: Sequence[int], name: str) -> None:
        super().__init__()
        for state, tensor in tensors.items():
            attach(self, state, tensor)
        # The names of everything else begin with walk_, because the network's own may be any.
        self.walk_form, self.walk_name = graph.program.form, name
        self.walk_rows = row_count(graph.example) is not None
        self.walk_alike, self.walk_stages = alike(graph), list(graph.stages)
        self.walk_values = [None if s.value is None else place_of(s.value, s) for s in self.walk_stages]
        self.walk_sides = [None if s.keys is None else {key: n for n, key in enumerate(s.keys)} for s in graph.stages]
        self.walk_blocks: list[Callable[..., Any]] = []
        for part in graph.parts:
            own = {node.target: tensors[node.target] for node in part.program.states}
            self.walk_blocks.append(type(extract_module(part, own, sizes, (), name)).forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on the original's arguments."""
        inputs = self.walk_form.tensors(args, kwargs, self.walk_name)
        if self.walk_rows and len(inputs[0]) != 1:
            return together([self.walk_row(row) for row in split(inputs)], merge=self.walk_alike)
        return self.walk_row(inputs)

    def walk_row(self, values: list[Tensor]) -> Any:
        """One row, written so that it can be compiled as any network that decides."""
        number = 0
        while True:
            values = self.walk_block(number, values)
            if self.walk_values[number] is None:
                break
            if self.walk_sides[number] is None:
                side = 1
                if values[self.walk_values[number]]:  # type: ignore[index]
                    side = 0
            else:
                side = self.walk_sides[number][int(values[self.walk_values[number]])]  # type: ignore[index]
            number, values = step(self.walk_stages[number], side, values, self.walk_stages)
        if self.walk_stages[number].raised is not None:
            raise error_of(self.walk_stages[number])
        return ended(self.walk_stages[number], values)

    def walk_block(self, number: int, values: list[Tensor]) -> list[Tensor]:
        """A state's parameters and outputs."""
        return [*values, *self.walk_blocks[number](self, *values)]
