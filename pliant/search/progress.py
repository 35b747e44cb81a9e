"""A line per trial for whoever watches."""

import sys
from collections.abc import Sequence

from rich.console import Console

from pliant.search.draw import number
from pliant.search.front import Axis, Front
from pliant.search.outcome import FAILED, FINISHED, Outcome

_BUDGETS = ((0.25, "¼"), (0.5, "½"), (1.0, "all"))


class Told:
    """Progress: trial, time left, front size, hypervolume, the best within budgets.

    Args:
        axes: the objectives.
        total: trials.
        wanted: whether to write; None for "where stderr is a terminal".
        workers: how many trials run at once.
    """

    def __init__(self, axes: Sequence[Axis], total: int, wanted: bool | None, *, workers: int = 1) -> None:
        self._axes, self._total, self._workers = axes, total, workers
        self._on = sys.stderr.isatty() if wanted is None else wanted
        self._console = Console(stderr=True, highlight=False)
        self._seconds: list[float] = []

    def trial(self, outcomes: Sequence[Outcome]) -> None:
        """The last of `outcomes` has ended."""
        last = outcomes[-1]
        self._seconds.append(last.seconds)
        if not self._on:
            return
        front = Front([outcome.point for outcome in outcomes if outcome.status == FINISHED], self._axes)
        parts = [f"{last.seconds:5.1f} s", f"{duration(self.left(len(outcomes)))} left"]
        if last.status != FINISHED:
            parts.append(last.status + (f" ({last.problem})" if last.status == FAILED else ""))
        if len(front):
            parts += [f"front {len(front)}", f"hypervolume {number(front.hypervolume())}", best_told(front)]
        head = f"[bold]{len(outcomes):>4}[/]/{self._total}"
        self._console.print(f"{head}  ", end="")
        self._console.print("  ".join(parts), markup=False, soft_wrap=True)

    def left(self, done: int) -> float:
        """Seconds that the rest will take, if it is like the last twenty trials."""
        recent = self._seconds[-20:]
        return (self._total - done) * sum(recent) / len(recent) / self._workers


def best_told(front: Front) -> str:
    """The best of the first objective; with a second one within shares of its largest value on the front."""
    first = front.objectives[0]
    if len(front.objectives) == 1:
        return f"best {first.key} {number(front.best().values[first.key])}"
    budget = front.objectives[1]
    values = [point.values[budget.key] for point in front]
    span = max(values) - min(values)
    slack = 1e-12 * (abs(min(values)) + span)
    told = []
    for share, name in _BUDGETS:
        limit = min(values) + share * span if not budget.maximise else max(values) - share * span
        within = [point for point in front if budget.cost(point.values[budget.key]) <= budget.cost(limit) + slack]
        best = min(first.cost(p.values[first.key]) for p in within)
        told.append(f"{number(first.cost(best))} at {name}")
    return f"best {first.key} {', '.join(told)} of {budget.key}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
