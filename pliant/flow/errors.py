"""What stops the interpreter: refusals with a place in the user's code, and signals of its own."""

import linecache
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.core import PliantError


@dataclass(frozen=True)
class Place:
    """A line of the user's code."""

    file: str
    line: int

    @property
    def short(self) -> str:
        """`net.py:12`."""
        return f"{Path(self.file).name}:{self.line}"

    @property
    def source(self) -> str:
        """The line itself, without indentation."""
        return linecache.getline(self.file, self.line).strip()


class Rejected(PliantError):
    """A forward that cannot become a program.

    Args:
        reason: why.
        place: where in the user's code; None where no line is to blame.
        fix: the way out.
    """

    def __init__(self, reason: str, place: Place | None, fix: str) -> None:
        self.reason, self.place = reason, place
        source = f" in `{place.source}`" if place is not None and place.source else ""
        where = None if place is None else f"{place.file}:{place.line}"
        super().__init__(f"{reason}{source}", where=where, fix=fix)


class Stop(BaseException):
    """The interpreter must look closer. No `Exception`: an `except` of the user's must not swallow it.

    Args:
        reason, fix: of the refusal, if looking closer does not help.
    """

    def __init__(self, reason: str, fix: str) -> None:
        self.reason, self.fix = reason, fix
        super().__init__(reason)


class Final(Stop):
    """Looking closer cannot help."""


class Undecided(Stop):
    """Python asked a tensor, or a run-time number, whether it is true.

    Args:
        reason, fix: as in `Stop`.
        kind: of the expression that can be taken apart: "call", "if" or "choice".
    """

    def __init__(self, reason: str = "Python needs the truth of a tensor here", fix: str = "", kind: str = "call"):
        super().__init__(reason, fix or "let an `if` or `while` of the network's own code decide, or use torch.where")
        self.kind = kind


class Leak(Stop):
    """Python asked for the value of a run-time number.

    Args:
        what: for what.
        origins: the counters the number comes from, if any.
    """

    def __init__(self, what: str, origins: frozenset[Any] = frozenset()):
        fix = "keep it a tensor (torch.where, gather, index_select), or decide with `if` on it"
        super().__init__(f"Python needs the value of a tensor here, as {what}", fix)
        self.origins = origins
