"""Gradient boosting predictor: many measurements, and dependences that are neither linear nor smooth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pliant.search.pareto import Array
from pliant.search.predict import reach
from pliant.search.predictors.contract import Encoded, embed

_BAGS = 8


@dataclass(frozen=True)
class Bag:
    """Boosted trees, each ensemble fitted to another draw of the points, over rows of features.

    Args:
        models: scikit-learn's `GradientBoostingRegressor`s.
        noise: standard deviation of what they leave unexplained.
        misses: [points], ascending: how many predicted standard deviations points lie off that models did not see.
    """

    models: Sequence[Any]
    noise: float
    misses: Array

    def mean(self, rows: Array) -> Array:
        """Predictions: float64 [rows]."""
        return np.asarray(self._each(rows).mean(axis=0), dtype=np.float64)

    def std(self, rows: Array) -> Array:
        """Standard deviation of a measurement of each row: float64 [rows]."""
        return np.asarray(np.sqrt(self._each(rows).var(axis=0) + self.noise**2), dtype=np.float64)

    def interval(self, rows: Array, share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie, calibrated on points that models did not see.

        Raises:
            ValueError: a share that is not between 0 and 1.
        """
        middle, half = self.mean(rows), reach(self.misses, share) * self.std(rows)
        return middle - half, middle + half

    def draw(self, rows: Array, n: int, rng: np.random.Generator) -> Array:
        """`n` of the models, at random, evaluated at every row: float64 [n, rows]."""
        return self._each(rows)[rng.integers(len(self.models), size=n)]

    def _each(self, rows: Array) -> Array:
        return np.stack([model.predict(rows) for model in self.models])


def fit_boosting(hot: Array, levels: Array, *, targets: Array) -> Encoded:
    """Bagged gradient boosting over encoded configs.

    Friedman 2001, "Greedy Function Approximation: A Gradient Boosting Machine"; Breiman 1996, "Bagging Predictors",
    whose left-out points say how far off predictions are.

    Args:
        hot: [points, columns], see `Space.encode`.
        levels: [points, knobs].
        targets: [points], finite.

    Raises:
        ValueError: fewer than four points.
    """
    return Encoded(bagged(embed(hot, levels), targets))


def bagged(rows: Array, targets: Array) -> Bag:
    """The bag over plain rows of features; see `fit_boosting`."""
    from sklearn.ensemble import GradientBoostingRegressor

    if len(targets) < 4:
        raise ValueError(f"gradient boosting needs at least 4 points, got {len(targets)}")
    rng = np.random.default_rng(0)
    models, left_out, guesses = [], [], []
    for number in range(_BAGS):
        picks = rng.integers(len(rows), size=len(rows))
        model = GradientBoostingRegressor(
            n_estimators=100, learning_rate=0.1, max_depth=3, subsample=0.7, max_features=0.3, random_state=number
        )
        models.append(model.fit(rows[picks], targets[picks]))
        left_out.append(~np.isin(np.arange(len(rows)), picks))
        guesses.append(model.predict(rows))
    unseen, guessed = np.stack(left_out), np.stack(guesses)
    judged = unseen.sum(axis=0) > 1  # by two models at least, so that they can differ
    held = np.where(unseen, guessed, np.nan)[:, judged]
    residuals, spreads = targets[judged] - np.nanmean(held, axis=0), np.nanvar(held, axis=0)
    noise = float(np.sqrt(max(float((residuals**2 - spreads).mean()), 1e-12)))
    return Bag(tuple(models), noise, np.sort(np.abs(residuals) / np.sqrt(spreads + noise**2)))
