"""Elastic networks that decide: one family over all branches, and its sub-networks with the user's own code."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, as_call, call, copied, map_tensors, seeded
from pliant.elastic.elastic import Elastic
from pliant.elastic.walk import Walked, Walker
from pliant.flow import decides
from pliant.flow.joint import Joint, one_row, row_count, taken_apart
from pliant.flow.needs import samples_of
from pliant.graph.graph import Graph, trace
from pliant.graph.labels import IntArray
from pliant.graph.rows import agree, run
from pliant.learn.modes import in_mode

_TOLERANCE = 1e-4
_CASES = 3


class Branching(Elastic):
    """A family over a network whose way depends on the data. Made by `pliant.elastic`.

    Its forward is read as a program for one row; many rows are independent runs of it. Results of many rows are joined
    along axis 0 where all ways return the same structure (numbers become a tensor [N]), else they are a list. In
    training the rows that meet at a BatchNorm are its batch.

    Attributes:
        graph: all branches; a group bends only where every branch agrees.
    """

    graph: Joint

    def keep(self, original: nn.Module) -> None:
        """Remember the module whose code sub-networks are to run where they can; it shares the family's tensors."""
        self.__dict__["_original"] = [original]  # in a list, so that it is no sub-module

    def _runs(self, graph: Graph) -> Any:
        return Walker(graph)  # type: ignore[arg-type]

    def _made_of(self, states: Mapping[str, Tensor], counts: IntArray, spans: Sequence[bool],
                 shared: Mapping[int, Tensor]) -> nn.Module:  # fmt: skip
        kind: type[Walked] = type(self.name, (Walked,), {"__doc__": Walked.__doc__})  # called as the original
        module = kind(self.graph, states, self._values(counts), self.name)
        module.__dict__["_counts"] = counts
        return module

    def _calibrated(self, module: nn.Module, batches: Iterable[Any], counts: IntArray) -> None:
        walker: Walker = self._runner  # type: ignore[assignment]
        held = _tensors(module)
        weights = [held[name] for name in walker.states]
        tensors = [self.graph.program.form.tensors(*as_call(batch), self.name) for batch in batches]
        if not tensors:
            raise PliantError(
                "no batches to estimate BatchNorm statistics from", fix="give calibrate at least one batch"
            )
        for name, value in walker.statistics(weights, self._values(counts), tensors).items():
            held[name].copy_(value)

    def extract(self, config: Mapping[str, int | bool] | Any, *, calibrate: Iterable[Any] | None = None,
                into: nn.Module | None = None) -> nn.Module:  # fmt: skip
        """A sub-network as a plain, really smaller module with the original parameter names.

        Where the original's code runs on the cut parameters, and every block of it then computes what the family's
        does, the module is of the original's class. Else (a size is written into the code) it is one that runs the
        blocks, `Walked`.

        Args:
            config: what to keep: a config, anything with a `.config`, or a `Selection`.
            calibrate: batches of training inputs, from which BatchNorm statistics are estimated anew; None takes the
                remembered ones, where there are any.
            into: a narrower module of your own class: it is filled, compared block by block, and returned.

        Raises:
            ValueError: an unknown knob, a value it does not take, or a unit it does not have.
            PliantError: `into` has other parameters, or computes something else.
        """
        walked = self._extracted(config, calibrate)
        assert isinstance(walked, Walked)  # what `_made_of` makes
        if into is not None:
            reason = self._filled(into, walked)
            if reason:
                fix = "build it with the sub-network's sizes"
                raise PliantError(f"into is not the sub-network ({reason})", fix=fix)
            return into
        own = self._in_own_code(walked)
        return walked if own is None else own

    def _filled(self, module: nn.Module, walked: Walked) -> str:
        """Load a sub-network's tensors into a module; what is different then, or nothing."""
        stored = {name: tensor for name, tensor in walked.state_dict().items() if name not in self._own}
        try:
            module.load_state_dict(stored, strict=False)
        except RuntimeError as error:
            return str(error).strip().splitlines()[-1].strip().rstrip(".")
        return difference(module, walked, self.example)

    def _in_own_code(self, walked: Walked) -> nn.Module | None:
        """The original's module with a sub-network's tensors, if it computes the same on every branch."""
        kept: list[nn.Module] = self.__dict__.get("_original", [])
        if not kept:
            return None
        module = copied(kept[0])
        sizes = self._new_sizes(walked.__dict__["_counts"])
        before = _tensors(module)
        for name, tensor in _tensors(walked).items():
            if name in before:
                path, _, leaf = name.rpartition(".")
                pairs = zip(before[name].shape, tensor.shape, strict=True)
                sizes.setdefault(path, {}).update({old: new for old, new in pairs if old != new})
                setattr(module.get_submodule(path), leaf, tensor)  # some modules keep lists of their parameters
        _resize(module, sizes)
        module.train(self.training)
        return None if difference(module, walked, self.example) else module

    def _new_sizes(self, counts: IntArray) -> dict[str, dict[int, int]]:
        """By module path the numbers of units that its parameters had, and what they are now."""
        found: dict[str, dict[int, int]] = {}
        for group, count in zip(self.graph.groups, counts.tolist(), strict=True):
            for name, _ in group.where if count != group.units else ():
                found.setdefault(name.rpartition(".")[0], {})[group.units] = count
        return found


def _resize(module: nn.Module, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Numbers among a module's attributes that are a size of its parameters follow what was cut, in place.

    This is a guess (a size may stand for another one); whoever makes it compares what the module computes.
    """
    for path, part in module.named_modules():
        own = dict(sizes.get(path, {}))
        if not own:  # a module that holds others may know their sizes
            for name, each in sizes.items():
                if name.startswith(f"{path}.") and name.count(".") == path.count(".") + (1 if path else 0):
                    own |= each
        for name, value in vars(part).items():
            if isinstance(value, int) and not isinstance(value, bool) and value in own:
                part.__dict__[name] = own[value]
            elif isinstance(value, tuple) and value and all(type(item) is int for item in value):
                part.__dict__[name] = tuple(own.get(item, item) for item in value)


def difference(module: nn.Module, walked: Walked, example: Any) -> str:
    """Why a module is not the network that runs the blocks of another one; nothing where it is.

    Both are compared block by block on random values, so that no branch is left out.
    """
    with in_mode(module, False), in_mode(walked, False), torch.no_grad():
        return _difference(module, walked, one_row(example))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers(remove_duplicate=False)) | dict(module.named_parameters(remove_duplicate=False))


def _difference(module: nn.Module, walked: Walked, row: Any) -> str:
    try:
        call(module, row)  # says sooner and in fewer words what does not fit
        blocks, stages = taken_apart(module, row)
    except Exception as error:  # whatever the module's own code raises on other sizes
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    if len(stages) != len(walked.walk_stages) or not all(a.same(b) for a, b in zip(stages, walked.walk_stages)):
        return "it decides in other places"
    tensors = _tensors(module)
    generator = seeded(0, "branching", "difference")
    for number, (block, stage) in enumerate(zip(blocks, stages, strict=True)):
        for _ in range(_CASES):
            given = samples_of(stage.kinds, generator)
            found = list(run(block, tensors | block.constants, [value.clone() for value in given]))
            try:
                wanted = walked.walk_block(number, [value.clone() for value in given])[len(given) :]
            except (RuntimeError, IndexError) as error:
                return f"a block takes other shapes ({str(error).splitlines()[0][:200]})"
            if not agree(found, wanted, _TOLERANCE):
                return f"the block at {stage.at} computes something else"
    return ""


def graph_of(model: nn.Module, example: Any, *, asked: Sequence[str] = ()) -> Graph:
    """The graph of a model; with an example of one row, of all its branches where it decides on data.

    With more rows a decision is one of the whole batch, as far as anybody can tell: parts that decide then stay as they
    are, and a network that decides outside of such parts is refused.

    Raises:
        PliantError: it can be neither traced nor taken apart; the message names the line.
    """
    single = row_count(example) in (1, None)
    try:
        graph = trace(model, example, asked=asked)
    except PliantError as error:
        if not _decides(model, example):
            raise
        if not single:
            fix = "or give an example of one row, if every row decides for itself"
            fix = fix if error.fix is None else f"{error.fix.rstrip('.')}; {fix}"
            raise PliantError(error.problem, where=error.where, fix=fix) from error
        return _joint(model, example, asked)
    if not graph.program.opaque or not single or not _decides(model, example):
        return graph
    try:  # parts of it decide, which a trace leaves as they are
        return _joint(model, example, asked)
    except PliantError:
        return graph


def _joint(model: nn.Module, example: Any, asked: Sequence[str]) -> Joint:
    with in_mode(model, False):
        return Joint(model, example, asked=asked)


def _decides(model: nn.Module, example: Any) -> bool:
    row = map_tensors(lambda tensor: tensor.detach(), one_row(example))
    with in_mode(model, False), suppress(Exception):  # whatever the network's own code raises on one row
        return decides(model, row)
    return False
