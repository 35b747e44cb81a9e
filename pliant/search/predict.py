"""Ridge predictors of objectives over one-hot configs, with calibrated uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from pliant.search.pareto import Array

# no weaker: with more features than points an all but free ridge believes everything possible where it saw nothing
_ALPHAS = np.logspace(-0.5, 2, 9)
_PAIRS = (0.0, 0.3, 1.0)
_PART = 4096  # rows
_SHARED = 5.0  # so heavy that the ridge hardly shrinks what all knobs have in common


@dataclass(frozen=True)
class Scale:
    """An invertible, growing view of an objective: `log(target - shift)`, or the target itself."""

    logarithmic: bool = False
    shift: float = 0.0

    def to(self, targets: Array) -> Array:
        """Objective to view."""
        return np.log(targets - self.shift) if self.logarithmic else targets

    def back(self, values: Array) -> Array:
        """View to objective."""
        # far outside of what was seen a logarithm may explode; no decision needs more than this range
        return np.exp(values.clip(-60, 60)) + self.shift if self.logarithmic else values


def scales_of(targets: Array) -> list[Scale]:
    """The views worth trying.

    Costs of networks are products of neighbouring widths, which logarithms make additive. Qualities saturate: their
    distance from a little beyond the best one seen is closer to a product of what each part contributes.
    """
    span = float(np.ptp(targets))
    views = [Scale()]
    if span > 0:
        views += [Scale(True, float(targets.min()) - share * span) for share in (0.02, 0.1, 0.3)]
        if targets.min() > 0:
            views.append(Scale(True))
    return views


@dataclass(frozen=True)
class Predictor:
    """A fitted ridge, also as a Gaussian belief about its weights.

    `mean`, `std`, `interval` and `draw` are what every predictor of `pliant.search.predictors` offers.

    Args:
        scale: the view in which it is linear.
        pairs: weight of the products of two knobs' levels among the features; 0 for none.
        alpha: strength of the ridge.
        weights: [features].
        seen: [points, features], the centred training rows.
        centre: [features], mean of the training rows.
        offset: mean of the training target in the view.
        noise: standard deviation of a measurement in the view, at which left-out points lie as far off as predicted.
        error: leave-one-out mean absolute error in the unit of the objective.
        misses: [points], ascending: how many predicted standard deviations left-out points lie off.
    """

    scale: Scale
    pairs: float
    alpha: float
    weights: Array
    seen: Array
    centre: Array
    offset: float
    noise: float
    error: float
    misses: Array

    def mean(self, hot: Array, levels: Array) -> Array:
        """Predictions for one-hot rows and their levels: float64 [rows]."""
        return self.scale.back(self._in_parts(hot, levels, lambda rows: rows @ self.weights) + self.offset)

    def std(self, hot: Array, levels: Array) -> Array:
        """Standard deviation of a measurement of each row, in the unit of the objective: float64 [rows].

        Under a logarithmic view it is half of what one deviation up and one down are apart.
        """
        middle, spread = self._belief(hot, levels)
        return np.asarray((self.scale.back(middle + spread) - self.scale.back(middle - spread)) / 2)

    def interval(self, hot: Array, levels: Array, share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie: float64 [rows] each.

        As wide, in predicted standard deviations, as was needed for the training points when they were left out
        (conformal calibration on leave-one-out residuals: Barber, Candes, Ramdas & Tibshirani 2021, "Predictive
        inference with the jackknife+").

        Raises:
            ValueError: a share that is not between 0 and 1.
        """
        middle, spread = self._belief(hot, levels)
        half = reach(self.misses, share) * spread
        return self.scale.back(middle - half), self.scale.back(middle + half)

    def _belief(self, hot: Array, levels: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of a measurement, in the view."""
        factor = np.linalg.cholesky(self.seen @ self.seen.T + self.alpha * np.eye(len(self.seen)))

        def doubt(rows: Array) -> Array:
            known = solve_triangular(factor, self.seen @ rows.T, lower=True)
            return np.asarray((rows**2).sum(axis=1) - (known**2).sum(axis=0))

        middle = self._in_parts(hot, levels, lambda rows: rows @ self.weights) + self.offset
        extra = self._in_parts(hot, levels, doubt).clip(0) / self.alpha
        return middle, self.noise * np.sqrt(1 + extra)

    def _in_parts(self, hot: Array, levels: Array, compute: Callable[[Array], Array]) -> Array:
        """`compute` over centred features, a few thousand rows at a time: products of knobs take much memory."""
        parts = [
            compute(features(hot[start : start + _PART], levels[start : start + _PART], self.pairs) - self.centre)
            for start in range(0, len(hot), _PART)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def draw(self, hot: Array, levels: Array, n: int, rng: np.random.Generator) -> Array:
        """`n` plausible functions evaluated at every row: float64 [n, rows].

        Weights are drawn from the prior and corrected by what was seen (Matheron's rule), which needs only a system
        of the size of the training set.
        """
        points, width = self.seen.shape
        prior = rng.standard_normal((width, n)) * (self.noise / np.sqrt(self.alpha))
        noise = rng.standard_normal((points, n)) * self.noise
        kernel = self.seen @ self.seen.T + self.alpha * np.eye(points)
        drift = prior - self.seen.T @ np.linalg.solve(kernel, self.seen @ prior + noise)
        values = (features(hot, levels, self.pairs) - self.centre) @ (self.weights[:, None] + drift)
        return self.scale.back(values.T + self.offset)


def features(hot: Array, levels: Array, pairs: float) -> Array:
    """One-hot columns, how large the network is as a whole, and weighted by `pairs` the products of two knobs' levels.

    Args:
        hot: [rows, sum of choices], see `codes.one_hot`.
        levels: [rows, knobs], see `codes.levels`.
        pairs: 0 leaves the products out.
    """
    size = levels.mean(axis=1, keepdims=True)
    columns = [hot, _SHARED * size, _SHARED * size**2]
    if pairs > 0:
        left, right = np.triu_indices(levels.shape[1], k=1)
        columns.append(pairs * levels[:, left] * levels[:, right])
    return np.concatenate(columns, axis=1)


def fit(hot: Array, levels: Array, targets: Array) -> Predictor:
    """The ridge that best predicts left-out points, over strengths, views of the target, and with or without pairs.

    Hoerl & Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"; leave-one-out errors in
    closed form from one singular value decomposition (Golub, Heath & Wahba 1979).

    Args:
        hot: [points, sum of choices], one-hot rows.
        levels: [points, knobs], in [-1, 1].
        targets: [points], finite.
    """
    found: list[Predictor] = []
    for pairs in _PAIRS if levels.shape[1] > 1 else (0.0,):
        rows = features(hot, levels, pairs)
        centre = rows.mean(axis=0)
        u, s, vt = np.linalg.svd(rows - centre, full_matrices=False)
        for scale in scales_of(targets):
            view = scale.to(targets)
            offset = float(view.mean())
            turned = u.T @ (view - offset)
            for alpha in _ALPHAS:
                shrink = s**2 / (s**2 + alpha)
                leverage = (u**2 @ shrink + 1 / len(rows)).clip(max=1 - 1e-9)
                residual = (view - offset - u @ (shrink * turned)) / (1 - leverage)
                error = float(np.abs(scale.back(view - residual) - targets).mean())
                if not found or error < found[-1].error:
                    # a left-out point is predicted to lie noise / sqrt(1 - leverage) off
                    misses = np.sort(np.abs(residual) * np.sqrt(1 - leverage))
                    noise = float(np.sqrt((misses**2).mean()))
                    weights = vt.T @ (s / (s**2 + alpha) * turned)
                    misses = misses / noise if noise > 0 else misses
                    found.append(
                        Predictor(
                            scale, pairs, float(alpha), weights, rows - centre, centre, offset, noise, error, misses
                        )
                    )
    return found[-1]


def reach(misses: Array, share: float) -> float:
    """How many standard deviations an interval must reach to hold `share` of new points (split-conformal quantile).

    With too few points for the share it is the largest miss.

    Args:
        misses: [points], ascending, absolute residuals of points that were left out over their standard deviations.
        share: between 0 and 1.

    Raises:
        ValueError: another share.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    place = int(np.ceil(share * (len(misses) + 1))) - 1
    return float(misses[min(place, len(misses) - 1)])
