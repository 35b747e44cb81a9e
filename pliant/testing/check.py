"""Running laws, and the zoo as their subjects."""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from pliant.core import Inputs, PliantError, seeded
from pliant.elastic.report import Report
from pliant.testing.entry import stir
from pliant.testing.laws import LAWS
from pliant.testing.subject import LawBroken, Subject, case_of
from pliant.testing.zoo import ZOO


@dataclass(frozen=True)
class Verdict:
    """What came of one law on one network.

    Args:
        network: name of the subject.
        law: name of the law.
        holds: whether it held.
        figures: what was measured, or what broke.
        seconds: how long it took.
    """

    network: str
    law: str
    holds: bool
    figures: str
    seconds: float

    def __str__(self) -> str:
        return f"{'holds ' if self.holds else 'BROKEN'} {self.network}-{self.law}: {self.figures}"


def check(subject: Subject, laws: Iterable[str] | None = None) -> list[Verdict]:
    """Run laws on a network.

    Args:
        subject: the network.
        laws: names of laws; all of them by default.

    Returns:
        One verdict for each law. A network that cannot be made elastic at all breaks every law.

    Raises:
        ValueError: an unknown law.
    """
    names = list(LAWS) if laws is None else list(laws)
    for name in names:
        if name not in LAWS:
            raise ValueError(f"no law {name!r}; laws are {', '.join(LAWS)}")
    return [_judge(subject, name) for name in names]


def _judge(subject: Subject, name: str) -> Verdict:
    start = time.perf_counter()
    try:
        holds, figures = True, LAWS[name](subject)
    except LawBroken as broken:
        holds, figures = False, broken.figures
    except PliantError as error:
        holds, figures = False, str(error)
    return Verdict(subject.name, name, holds, figures, time.perf_counter() - start)


def zoo_subjects(tag: str | None = None) -> dict[str, Subject]:
    """The networks of the zoo as subjects, by name.

    Args:
        tag: only those that have it; "core" are the few on which the fast tests run every law.
    """
    return {
        name: Subject(name, entry.make, entry.example, entry.tags, entry.silent)
        for name, entry in ZOO.items()
        if tag is None or tag in entry.tags
    }


@dataclass(frozen=True)
class Judgement:
    """What `check_network` found; prints as a verdict.

    Args:
        network: class name of the model.
        verdicts: one for each law.
        bends: the report of the family, None where the network cannot be traced.
    """

    network: str
    verdicts: tuple[Verdict, ...]
    bends: Report | None

    @property
    def holds(self) -> bool:
        """Whether every law held."""
        return all(verdict.holds for verdict in self.verdicts)

    def __str__(self) -> str:
        kept = sum(verdict.holds for verdict in self.verdicts)
        if self.bends is None:
            return f"{self.network}: cannot be made elastic\n  {self.verdicts[0].figures}"
        wide = max(len(verdict.law) for verdict in self.verdicts)
        lines = [f"{self.network}: {kept} of {len(self.verdicts)} laws hold; {self.bends.headline()}"]
        lines += [f"  {'holds ' if v.holds else 'BROKEN'} {v.law:<{wide}}  {v.figures}" for v in self.verdicts]
        lines += [f"  rigid: {r.operator} {r.module} {r.line}: {r.reason}" for r in self.bends.rigid]
        lines += [f"  note: {note}" for note in self.bends.notes]
        if self.bends.subnetworks == 1:
            lines.append("  Nothing bends: there are no smaller networks to speak of.")
        elif self.holds:
            lines.append("  Every sub-network that was tried computes what it should: train, search and compile it.")
        else:
            lines.append("  Do not rely on this family before the broken laws are understood.")
        return "\n".join(lines)


def check_network(model: nn.Module, example: Inputs, *, laws: Iterable[str] | None = None) -> Judgement:
    """Run the law suite on a network of your own.

    It works on copies, in which vectors whose entries are all alike (biases of zero, norm scales of one) got random
    ones: with equal entries nobody could see which of them is used where.

        print(pliant.testing.check_network(model, torch.randn(2, 3, 32, 32)))

    Args:
        model: any network; it is not changed.
        example: an input: a tensor, a tuple (positional) or a dict (keyword); axis 0 is the batch, two rows or more.
        laws: names of laws; all of them by default.

    Returns:
        The judgement; a network that cannot be traced breaks every law, and the judgement says at which line.

    Raises:
        ValueError: an unknown law.
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")

    def make() -> nn.Module:
        twin = copy.deepcopy(model)
        stir(twin, seeded(0, "check", type(model).__name__))
        return twin

    subject = Subject(type(model).__name__, make, lambda: copy.deepcopy(example))
    verdicts = tuple(check(subject, laws))
    try:
        bends = case_of(subject).family.report()
    except PliantError:
        bends = None
    return Judgement(subject.name, verdicts, bends)
