"""Running laws, and the zoo as their subjects."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from pliant.core import PliantError
from pliant.testing.laws import LAWS
from pliant.testing.subject import LawBroken, Subject
from pliant.testing.zoo import ZOO

_KEY_BIAS = (
    "q (k + b) = q k + q b: the bias of a separate key projection adds one number to all scores of a query, "
    "which softmax does not see"
)
_SILENT = {
    "bert": {f"encoder.layer.{i}.attention.self.key.bias[0]": _KEY_BIAS for i in range(2)},
}


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


def zoo_subjects() -> dict[str, Subject]:
    """The networks of the zoo as subjects, by name."""
    return {
        name: Subject(name, entry.make, entry.example, entry.tags, _SILENT.get(name, {})) for name, entry in ZOO.items()
    }
