"""What every fitted predictor offers, and the step from encoded configs to plain rows of features."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pliant.search.pareto import Array
from pliant.search.predict import Predictor, features, fit


class Fitted(Protocol):
    """A fitted predictor over rows of features: float64 [rows, features]."""

    def mean(self, rows: Array) -> Array:
        """Predictions: float64 [rows]."""
        ...

    def std(self, rows: Array) -> Array:
        """Standard deviation of a measurement of each row: float64 [rows]."""
        ...

    def interval(self, rows: Array, share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie: float64 [rows] each."""
        ...

    def draw(self, rows: Array, n: int, rng: np.random.Generator) -> Array:
        """`n` plausible functions evaluated at every row: float64 [n, rows]."""
        ...


@dataclass(frozen=True)
class Encoded:
    """A predictor over rows of features, asked with encoded configs: one-hot rows and levels, as the ridge is.

    Args:
        inner: predicts from `embed(hot, levels)`.
    """

    inner: Fitted

    def mean(self, hot: Array, levels: Array) -> Array:
        """Predictions: float64 [rows]."""
        return self.inner.mean(embed(hot, levels))

    def std(self, hot: Array, levels: Array) -> Array:
        """Standard deviation of a measurement of each row: float64 [rows]."""
        return self.inner.std(embed(hot, levels))

    def interval(self, hot: Array, levels: Array, share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie: float64 [rows] each."""
        return self.inner.interval(embed(hot, levels), share)

    def draw(self, hot: Array, levels: Array, n: int, rng: np.random.Generator) -> Array:
        """`n` plausible functions evaluated at every row: float64 [n, rows]."""
        return self.inner.draw(embed(hot, levels), n, rng)


def embed(hot: Array, levels: Array) -> Array:
    """The features that the ridge has without products: float64 [rows, features]."""
    return features(hot, levels, 0.0)


def fit_ridge(hot: Array, levels: Array, *, targets: Array) -> Predictor:
    """The default searcher's predictor: see `pliant.search.predict.fit`.

    Args:
        hot: [points, columns], see `Space.encode`.
        levels: [points, knobs].
        targets: [points], finite.
    """
    return fit(hot, levels, targets)
