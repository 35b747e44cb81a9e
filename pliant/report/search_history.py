"""What a search leaves to tell beyond its front: how trials ended, and how well it could predict what it measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pliant.core import Space
from pliant.search import Front, codes, read_history
from pliant.search.predictors import Quality, fit_ridge, quality

FEWEST = 20
"""Measurements below which cross-validation says little."""
MOST_PROBLEMS = 5


@dataclass(frozen=True)
class SearchHistory:
    """How the trials ended and what predictors are worth.

    Args:
        ended: `finished`, `stopped` and `failed` to how many.
        problems: of the first failures, one line each.
        seconds: that all trials took together; 0 where nobody counted.
        predictors: objective key to the cross-validated quality of the default predictor.
    """

    ended: dict[str, int]
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    predictors: tuple[tuple[str, Quality], ...] = ()

    def told(self) -> str:
        """How trials ended, as a sentence; empty where all finished."""
        parts = [f"{self.ended[name]} {name}" for name in ("finished", "stopped", "failed") if self.ended.get(name)]
        text = f"Trials: {', '.join(parts)}" if len(parts) > 1 else ""
        if text and self.seconds:
            text += f" in {self.seconds:.0f} s"
        return f"{text}." if text else ""

    def rows(self) -> list[list[str]]:
        """For a table: objective, rank correlation, error, coverage, points."""
        return [
            [key, f"{found.tau:.2f}", f"{found.error:.4g}", f"{100 * found.coverage:.0f} %", str(found.points)]
            for key, found in self.predictors
        ]


HEAD = ("predictor of", "Kendall's tau", "mean error", "within its 90 % interval", "measurements")


def search_history(run: Path, front: Front, *, space: Space) -> SearchHistory:
    """What a run folder tells about its search.

    Args:
        run: the folder.
        front: its front.
        space: what was searched.

    Raises:
        PliantError: the journal is damaged.
    """
    outcomes = read_history(run)
    ended = dict(Counter(outcome.status for outcome in outcomes))
    problems = list(dict.fromkeys(outcome.problem for outcome in outcomes if outcome.problem))
    seconds = sum(outcome.seconds for outcome in outcomes)
    return SearchHistory(ended, tuple(problems[:MOST_PROBLEMS]), seconds, predictor_quality(front, space))


def predictor_quality(front: Front, space: Space) -> tuple[tuple[str, Quality], ...]:
    """Cross-validated quality of the default predictor on what was measured, by objective; none with too little."""
    if len(front.trials) < FEWEST:
        return ()
    rows = codes.encode(space, [point.config for point in front.trials])
    encoded: Sequence[object] = (codes.one_hot(space, rows), codes.levels(space, rows))
    found = []
    for axis in front.objectives:
        targets = np.asarray([point.values[axis.key] for point in front.trials])
        if np.ptp(targets) > 0:
            found.append((axis.key, quality(fit_ridge, encoded, targets=targets)))
    return tuple(found)
