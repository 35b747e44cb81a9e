"""Gaussian process predictor, its few numbers chosen by marginal likelihood."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from pliant.search.pareto import Array
from pliant.search.predict import Scale, reach, scales_of
from pliant.search.predictors.contract import Encoded, embed

_WAVES = 1024
_LEAST = 1e-6  # of the noise's share of the variance: keeps the matrix regular
_PART = 4096


@dataclass(frozen=True)
class Process:
    """A fitted Gaussian process with a squared exponential kernel, over rows of features.

    Args:
        scale: the view of the objective in which it is Gaussian.
        seen: [points, features], the training rows.
        middle: mean of the training target in the view.
        unit: its standard deviation there; the numbers below are in this unit.
        signal: variance of the function.
        length: distance in features over which it changes.
        noise: variance of a measurement.
        factor: [points, points], lower Cholesky factor of the kernel matrix with noise.
        weights: [points], that matrix' inverse times the targets.
        misses: [points], ascending: how many predicted standard deviations left-out points lie off.
        error: leave-one-out mean absolute error in the unit of the objective.
    """

    scale: Scale
    seen: Array
    middle: float
    unit: float
    signal: float
    length: float
    noise: float
    factor: Array
    weights: Array
    misses: Array
    error: float

    def mean(self, rows: Array) -> Array:
        """Predictions: float64 [rows]."""
        return self.scale.back(self._belief(rows, spread=False)[0])

    def std(self, rows: Array) -> Array:
        """Standard deviation of a measurement of each row, in the unit of the objective: float64 [rows]."""
        middle, spread = self._belief(rows)
        return np.asarray((self.scale.back(middle + spread) - self.scale.back(middle - spread)) / 2)

    def interval(self, rows: Array, share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie, calibrated on left-out points: float64 [rows] each.

        Raises:
            ValueError: a share that is not between 0 and 1.
        """
        middle, spread = self._belief(rows)
        half = reach(self.misses, share) * spread
        return self.scale.back(middle - half), self.scale.back(middle + half)

    def draw(self, rows: Array, n: int, rng: np.random.Generator) -> Array:
        """`n` plausible functions evaluated at every row: float64 [n, rows].

        Functions of the prior are sums of random waves (Rahimi & Recht 2007), corrected by what was seen
        (Wilson et al. 2020, "Efficiently Sampling Functions from Gaussian Process Posteriors").
        """
        width = self.seen.shape[1]
        waves = rng.standard_normal((width, _WAVES)) / self.length
        phases = rng.uniform(0, 2 * np.pi, _WAVES)
        heights = rng.standard_normal((_WAVES, n)) * np.sqrt(2 * self.signal / _WAVES)
        noise = rng.standard_normal((len(self.seen), n)) * np.sqrt(self.noise)
        gap = np.cos(self.seen @ waves + phases) @ heights + noise
        weights = self.weights[:, None] - cho_solve((self.factor, True), gap)
        values = np.cos(rows @ waves + phases) @ heights + self._kernel(rows) @ weights
        return self.scale.back(self.middle + self.unit * values.T)

    def _kernel(self, rows: Array) -> Array:
        return self.signal * np.exp(-_squares(rows, self.seen) / (2 * self.length**2))

    def _belief(self, rows: Array, spread: bool = True) -> tuple[Array, Array]:
        """Mean and standard deviation of a measurement, in the view."""
        middle, doubt = np.zeros(len(rows)), np.zeros(len(rows))
        for start in range(0, len(rows), _PART):
            part = slice(start, start + _PART)
            kernel = self._kernel(rows[part])
            middle[part] = kernel @ self.weights
            if spread:
                known = solve_triangular(self.factor, kernel.T, lower=True)
                doubt[part] = (self.signal - (known**2).sum(axis=0)).clip(0) + self.noise
        return self.middle + self.unit * middle, self.unit * np.sqrt(doubt)


def _squares(one: Array, other: Array) -> Array:
    """Squared distances: [rows of one, rows of other]."""
    return np.asarray(((one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2 * one @ other.T).clip(0))


def fit_process(hot: Array, levels: Array, *, targets: Array) -> Encoded:
    """A Gaussian process over encoded configs, in the view of the objective that best predicts left-out points.

    Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning": signal, length and noise maximise the
    marginal likelihood (equation 2.30, by scikit-learn); leave-one-out predictions in closed form (equation 5.12).

    Args:
        hot: [points, columns], see `Space.encode`.
        levels: [points, knobs].
        targets: [points], finite.

    Raises:
        ValueError: fewer than two points.
    """
    rows = embed(hot, levels)
    return Encoded(best_process(rows, targets))


def best_process(rows: Array, targets: Array) -> Process:
    """The process over plain rows of features; see `fit_process`."""
    if len(targets) < 2:
        raise ValueError(f"a Gaussian process needs at least 2 points, got {len(targets)}")
    return min((_fit(rows, targets, scale) for scale in scales_of(targets)), key=lambda found: found.error)


def _fit(rows: Array, targets: Array, scale: Scale) -> Process:
    view = scale.to(targets)
    middle, unit = float(view.mean()), float(view.std()) or 1.0
    values = (view - middle) / unit
    signal, length, noise = _likeliest(rows, values)
    kernel = signal * np.exp(-_squares(rows, rows) / (2 * length**2))
    factor = cholesky(kernel + noise * np.eye(len(rows)), lower=True)
    weights = cho_solve((factor, True), values)
    precision = np.diag(cho_solve((factor, True), np.eye(len(rows))))
    residuals, spreads = weights / precision, 1 / np.sqrt(precision)
    error = float(np.abs(scale.back(middle + unit * (values - residuals)) - targets).mean())
    misses = np.sort(np.abs(residuals) / spreads)
    return Process(scale, rows, middle, unit, signal, length, noise, factor, weights, misses, error)


def _likeliest(rows: Array, values: Array) -> tuple[float, float, float]:
    """Signal variance, length and noise variance with the largest marginal likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    far = float(np.sqrt(np.median(_squares(rows, rows)))) or 1.0
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * RBF(far, (far / 30, far * 30)) + WhiteKernel(0.05, (_LEAST, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at a bound: then that bound is meant
        best = GaussianProcessRegressor(kernel, random_state=0).fit(rows, values).kernel_
    return float(best.k1.k1.constant_value), float(best.k1.k2.length_scale), float(best.k2.noise_level)
