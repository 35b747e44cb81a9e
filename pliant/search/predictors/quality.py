"""How good a predictor is, on measurements that it was not fitted to."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pliant.search.pareto import Array


@dataclass(frozen=True)
class Quality:
    """What cross-validation finds.

    Args:
        tau: Kendall's rank correlation of predictions and measurements, -1 to 1.
        error: mean absolute error, in the unit of the objective.
        coverage: share of measurements within their interval.
        share: the share that intervals were asked to hold.
        points: how many measurements.
    """

    tau: float
    error: float
    coverage: float
    share: float
    points: int

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON data."""
        return asdict(self)


def quality(
    fit: Callable[..., Any],
    encoded: Sequence[Any],
    *,
    targets: Array,
    folds: int = 5,
    share: float = 0.9,
    seed: int = 0,
) -> Quality:
    """Cross-validated quality of a predictor.

    Args:
        fit: such as `fit_ridge`.
        encoded: what it takes before the targets: (one-hot rows, levels), or (texts,).
        targets: [points], what was measured.
        folds: parts that are left out in turn.
        share: of the intervals.
        seed: of the parts.

    Raises:
        ValueError: fewer than two folds, or fewer points than twice the folds.
    """
    count = len(targets)
    if folds < 2 or count < 2 * folds:
        raise ValueError(f"{count} points in {folds} folds: give at least 2 folds and 2 points for each")
    parts = np.array_split(np.random.default_rng(seed).permutation(count), folds)
    guessed, low, high = np.zeros(count), np.zeros(count), np.zeros(count)
    for part in parts:
        rest = np.setdiff1d(np.arange(count), part)
        model = fit(*(_rows(item, rest) for item in encoded), targets=targets[rest])
        asked = [_rows(item, part) for item in encoded]
        guessed[part] = model.mean(*asked)
        low[part], high[part] = model.interval(*asked, share)
    inside = float(((low <= targets) & (targets <= high)).mean())
    return Quality(kendall_tau(guessed, targets), float(np.abs(guessed - targets).mean()), inside, share, count)


def _rows(item: Any, picks: Any) -> Any:
    return item[picks] if isinstance(item, np.ndarray) else [item[pick] for pick in picks]


def kendall_tau(one: Array, other: Array) -> float:
    """Kendall's tau-b; 0 where one of the two is constant."""
    from scipy.stats import kendalltau

    value = float(kendalltau(one, other).statistic)
    return value if np.isfinite(value) else 0.0
