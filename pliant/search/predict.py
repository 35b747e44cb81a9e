"""Ridge predictors of objectives over one-hot configs, with the uncertainty of their weights."""

from dataclasses import dataclass

import numpy as np

from pliant.search.pareto import Array

# no weaker: with more features than points an all but free ridge believes everything possible where it saw nothing
_ALPHAS = np.logspace(-0.5, 2, 9)
_PAIRS = (0.0, 0.3, 1.0)
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

    Args:
        scale: the view in which it is linear.
        pairs: weight of the products of two knobs' levels among the features; 0 for none.
        alpha: strength of the ridge.
        weights: [features].
        seen: [points, features], the centred training rows.
        centre: [features], mean of the training rows.
        offset: mean of the training target in the view.
        noise: leave-one-out root mean squared error in the view.
        error: leave-one-out mean absolute error in the unit of the objective.
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

    def mean(self, hot: Array, levels: Array) -> Array:
        """Predictions for one-hot rows and their levels: float64 [rows]."""
        return self.scale.back((features(hot, levels, self.pairs) - self.centre) @ self.weights + self.offset)

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
                    noise = float(np.sqrt((residual**2).mean()))
                    weights = vt.T @ (s / (s**2 + alpha) * turned)
                    found.append(
                        Predictor(scale, pairs, float(alpha), weights, rows - centre, centre, offset, noise, error)
                    )
    return found[-1]
