"""Which sub-network answers the next batch: the rule that serves, and those it is compared with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from pliant_runtime.serving.table import Table

if TYPE_CHECKING:
    from pliant_runtime.serving.controller import Controller


@dataclass(frozen=True)
class View:
    """What a policy sees when it chooses."""

    now: float
    controller: "Controller"


class Policy(ABC):
    """A rule that names the sub-network of the next batch."""

    @abstractmethod
    def choose(self, view: View) -> int:
        """The sub-network of the next batch."""

    @abstractmethod
    def admits_by(self, table: Table) -> int:
        """The sub-network whose speed decides who is let in."""


@final
class Adaptive(Policy):
    """The largest that keeps the promise and sustains the arrival rate; and one step larger where time is left over.

    Sizes come in steps: the one that sustains the rate may leave a third of the time unused, and the next may ask for
    more than there is. Mixed, they use all of it.
    """

    def __init__(self) -> None:
        self._level = 0
        self._since: float | None = None

    def choose(self, view: View) -> int:
        """Down at once, up after `up_hold_s`."""
        control, now = view.controller, view.now
        ladder = control.table.ladder
        best = next((n for n in reversed(range(len(ladder))) if control.keeps_up(ladder[n], now)), 0)
        larger = best + 1
        if larger < len(ladder) and control.spares(ladder[larger], now) and control.drains(ladder[larger], now):
            best = larger
        hold = control.settings.up_hold_s
        if best <= self._level or hold == 0:
            self._level, self._since = best, None
        elif self._since is None:
            self._since = now
        elif now - self._since >= hold:
            self._level, self._since = self._level + 1, now
        return ladder[self._level]

    def admits_by(self, table: Table) -> int:
        """The smallest."""
        return table.ladder[0]


@final
class Static(Policy):
    """Always the same sub-network: counted on the ladder, so 0 is the smallest and -1 the largest."""

    def __init__(self, level: int) -> None:
        self._level = level

    def choose(self, view: View) -> int:
        """Its own."""
        return view.controller.table.ladder[self._level]

    def admits_by(self, table: Table) -> int:
        """Its own."""
        return table.ladder[self._level]


@final
class RoundRobin(Policy):
    """One sub-network after the other."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, view: View) -> int:
        """The next."""
        ladder = view.controller.table.ladder
        self._turn = (self._turn + 1) % len(ladder)
        return ladder[self._turn]

    def admits_by(self, table: Table) -> int:
        """The one whose cost is nearest to the mean cost."""
        costs = {number: table.row_seconds(number) for number in table.ladder}
        mean = sum(costs.values()) / len(costs)
        return min(costs, key=lambda number: abs(costs[number] - mean))


def policy(name: str) -> Policy:
    """`adaptive`, `largest`, `smallest` or `round_robin`.

    Raises:
        ValueError: another name.
    """
    made = {
        "adaptive": Adaptive,
        "largest": lambda: Static(-1),
        "smallest": lambda: Static(0),
        "round_robin": RoundRobin,
    }
    if name not in made:
        raise ValueError(f"no policy {name!r}; there are {', '.join(made)}")
    return made[name]()


POLICIES = ("adaptive", "largest", "smallest", "round_robin")
