"""What laws are run on: a network with an example, and the elastic family made of it once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from pliant.core import Inputs, PliantError, tensors_of
from pliant.elastic import Elastic, elastic
from pliant.elastic.branching import Branching
from pliant.elastic.knobs import Choices


@dataclass(frozen=True)
class Subject:
    """A network that laws are run on.

    Args:
        name: what messages and case ids call it.
        make: makes the network, the same one every time (seed the weights in it). Vectors that are all alike (biases
            of zero, norm scales of one) hide mistakes; the zoo's networks have random ones.
        example: makes the example input, the same one every time; axis 0 is the batch, with at least two rows.
        tags: what is in it.
        silent: axes that provably cannot be seen in the output, as "state[axis]" to the reason; the law
            `leave_one_axis_out` allows these alone.
        choices: what `elastic` takes under this name: needed for what bends only where it is asked for. Subjects that
            differ in it alone need names of their own.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    tags: frozenset[str] = frozenset()
    silent: Mapping[str, str] = field(default_factory=dict, compare=False)
    choices: Choices | None = field(default=None, compare=False)


class LawBroken(AssertionError):
    """A network breaks a law.

    Args:
        network: name of the subject.
        law: name of the law.
        figures: what was found, with the numbers.
    """

    def __init__(self, network: str, law: str, figures: str) -> None:
        self.network, self.law, self.figures = network, law, figures
        super().__init__(f"{network} breaks {law}: {figures}")


@dataclass(frozen=True)
class Case:
    """A subject at work: an untouched network, its example and its family. Laws that change anything take copies."""

    model: nn.Module
    example: Inputs
    family: Elastic
    changes: tuple[str, ...]
    """What making the family changed outside it: nothing, if the law holds."""


@lru_cache(maxsize=32)
def case_of(subject: Subject) -> Case:
    """The family of a subject, made once.

    Raises:
        PliantError: it cannot be made elastic, or decides: then rows go their own ways, and the laws, which look at
            batches of one graph, say nothing about it.
    """
    model, example = subject.make(), subject.example()
    before = _snapshot(model)
    family = elastic(model, example, choices=subject.choices)
    if isinstance(family, Branching):
        problem = "this network decides by the values of a tensor, and the laws are for networks of one graph"
        fix = "compare sub-networks with pliant.elastic.branching.difference, which looks at every branch"
        raise PliantError(problem, where=subject.name, fix=fix)
    changes = [key for key, old, new in _pairs(before, _snapshot(model)) if not _same(old, new)]
    return Case(subject.make(), example, family, tuple(changes))


def _snapshot(model: nn.Module) -> dict[str, object]:
    modes = {f"training of {name or 'the model'}": module.training for name, module in model.named_modules()}
    flags = {f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()}
    grads = {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    return {**modes, **flags, **grads, **tensors, "the random state": torch.get_rng_state()}


def _pairs(before: dict[str, object], after: dict[str, object]) -> list[tuple[str, object, object]]:
    return [(key, before.get(key), after.get(key)) for key in {**before, **after}]


def _same(old: object, new: object) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.dtype == new.dtype and torch.equal(old, new)
    return old is new or (isinstance(old, bool) and old == new)


def gap(first: object, second: object) -> float:
    """Largest difference between the tensors of two outputs, relative to the largest magnitude of each pair.

    Infinite where they differ in number, shape or dtype, where integers differ, and where one side alone is not
    finite.
    """
    mine, others = tensors_of(first), tensors_of(second)
    if len(mine) != len(others):
        return float("inf")
    return max((_tensor_gap(a.detach(), b.detach()) for a, b in zip(mine, others, strict=True)), default=0.0)


def _tensor_gap(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape or first.dtype != second.dtype:
        return float("inf")
    if torch.equal(first, second):
        return 0.0
    if not first.is_floating_point():
        return float("inf")
    scale = float(second.abs().max().clamp_min(torch.finfo(second.dtype).tiny))
    difference = float((first - second).abs().max()) / scale
    return difference if difference == difference else float("inf")
