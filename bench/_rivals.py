"""Rivals of the search as their public code has them (DyNAS-T over pymoo), in numpy: NSGA-II and LINAS.

Settings of DyNAS-T for this super-network: 50 in a population, simulated binary crossover of probability 0.9 and index
15, polynomial mutation of index 20 with probability 0.02 for each choice, both rounded; no equal individuals; in LINAS
20,000 inner evaluations on predictors (ridge or support vectors, whichever cross-validates better).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import _nas as nas
from pliant.search.pareto import Array, crowding, ranks

POPULATION = 50
INNER = 20_000
_UP = 2  # the largest choice of every knob
Operators = Callable[[nas.Codes, nas.Codes, np.random.Generator], nas.Codes]


def published(mothers: nas.Codes, fathers: nas.Codes, rng: np.random.Generator) -> nas.Codes:
    """Two children of every pair: simulated binary crossover (Deb & Agrawal 1995), then polynomial mutation."""
    return _mutated(_crossed(mothers, fathers, rng), rng)


def even(mothers: nas.Codes, fathers: nas.Codes, rng: np.random.Generator) -> nas.Codes:
    """Two children of every pair: uniform crossover, then each choice anew with probability 1 / choices.

    Stronger here than the published operators, whose mutation is nearly always rounded away.
    """
    swap = rng.random(mothers.shape) < 0.5
    children = np.concatenate([np.where(swap, mothers, fathers), np.where(swap, fathers, mothers)])
    anew = rng.random(children.shape) < 1 / nas.KNOBS
    return np.where(anew, (children + rng.integers(1, _UP + 1, children.shape)) % (_UP + 1), children)


def _crossed(mothers: nas.Codes, fathers: nas.Codes, rng: np.random.Generator) -> nas.Codes:
    low, high = np.minimum(mothers, fathers).astype(float), np.maximum(mothers, fathers).astype(float)
    span = high - low
    taken = (rng.random(len(span)) < 0.9)[:, None] & (rng.random(span.shape) < 0.5) & (span > 0)
    drawn, width = rng.random(span.shape), np.where(span > 0, span, 1.0)

    def step(room: Array) -> Array:
        alpha = 2 - (1 + 2 * room / width) ** -16.0
        near = drawn <= 1 / alpha
        return np.asarray(np.where(near, drawn * alpha, 1 / np.maximum(2 - drawn * alpha, 1e-12)) ** (1 / 16))

    one, other = (low + high - step(low) * span) / 2, (low + high + step(_UP - high) * span) / 2
    swap = rng.random(span.shape) < 0.5
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    children = np.concatenate([np.where(taken, one, mothers), np.where(taken, other, fathers)])
    return np.asarray(np.rint(children).clip(0, _UP), dtype=np.int64)


def _mutated(codes: nas.Codes, rng: np.random.Generator) -> nas.Codes:
    value, drawn = codes.astype(float), rng.random(codes.shape)
    below, above = value / _UP, (_UP - value) / _UP
    down = (2 * drawn + (1 - 2 * drawn) * (1 - below) ** 21).clip(0) ** (1 / 21) - 1
    up = 1 - (2 * (1 - drawn) + (2 * drawn - 1) * (1 - above) ** 21).clip(0) ** (1 / 21)
    step = np.where(rng.random(codes.shape) < 0.02, np.where(drawn < 0.5, down, up) * _UP, 0.0)
    return np.asarray(np.rint(value + step).clip(0, _UP), dtype=np.int64)


def nsga2(
    costs: Callable[[nas.Codes], Array], evaluations: int, *, rng: np.random.Generator, breed: Operators = published
) -> nas.Codes:
    """Deb, Pratap, Agarwal & Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II".

    Args:
        costs: of rows of choice numbers, blocks that are left out included.
        evaluations: how many rows it may ask about.
        rng: of every choice.
        breed: what makes children.

    Returns:
        The last population: int64 [50, 45].
    """
    living = rng.integers(0, _UP + 1, (POPULATION, nas.KNOBS))
    values = costs(living)
    left = evaluations - POPULATION
    while left > 0:
        rank = ranks(values)
        space = crowding(values, rank)
        children = np.empty((0, nas.KNOBS), dtype=np.int64)
        for _ in range(100):  # until none of them is alive already
            missing = min(POPULATION, left) - len(children)
            if missing <= 0:
                break
            parents = living[_winners(rank, space, 2 * ((missing + 1) // 2), rng)]
            half = len(parents) // 2
            drawn = breed(parents[:half], parents[half:], rng)
            known = {row.tobytes() for row in np.concatenate([living, children])}
            fresh = [row for row in np.unique(drawn, axis=0) if row.tobytes() not in known]
            children = np.concatenate([children, np.asarray(fresh, dtype=np.int64).reshape(-1, nas.KNOBS)[:missing]])
        if not len(children):
            break
        left -= len(children)
        living, values = np.concatenate([living, children]), np.concatenate([values, costs(children)])
        rank = ranks(values)
        kept = np.lexsort((-crowding(values, rank), rank))[:POPULATION]
        living, values = living[kept], values[kept]
    return living


def _winners(rank: Any, space: Array, count: int, rng: np.random.Generator) -> Any:
    one, other = rng.integers(len(rank), size=(2, count))
    first = (rank[one] < rank[other]) | ((rank[one] == rank[other]) & (space[one] >= space[other]))
    return np.where(first, one, other)


@dataclass(frozen=True)
class _Guess:
    model: Any
    unit: float

    def __call__(self, rows: Array) -> Array:
        return np.asarray(self.model.predict(rows) * self.unit)


def _guess(rows: Array, targets: Array) -> _Guess:
    """The predictor of DyNAS-T: ridge or support vectors, by cross-validated relative error."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVR

    unit = float(10 ** (np.floor(np.log10(np.abs(targets).max())) - 1))
    tried = [
        (Ridge(), {"alpha": np.arange(0.1, 10.1, 0.1)}),
        (SVR(kernel="rbf", gamma="auto", epsilon=0.0, max_iter=1_000_000), {"C": np.arange(1.0, 101.0, 11.0)}),
    ]
    found = [
        GridSearchCV(model, grid, scoring="neg_mean_absolute_percentage_error").fit(rows, targets / unit)
        for model, grid in tried
    ]
    return _Guess(max(found, key=lambda one: one.best_score_).best_estimator_, unit)


def linas(
    costs: Callable[[nas.Codes], Array], evaluations: int, *, rng: np.random.Generator, inner: int = INNER
) -> None:
    """LINAS: measure a population, fit predictors to all that was measured, take the next one from NSGA-II on them.

    Cummings et al. 2022, "A Hardware-Aware System for Accelerating Deep Neural Network Optimization". The strengths of
    support vectors are tried in steps of 11 instead of 1, which saves time and nothing else.

    Args:
        costs: as in `nsga2`; what it is asked about counts as measured.
        evaluations: how many rows are measured.
        rng: of every choice.
        inner: how many rows NSGA-II may ask the predictors about.
    """
    rows = rng.integers(0, _UP + 1, (POPULATION, nas.KNOBS))
    seen, values = rows[:0], np.zeros((0, 2))
    while True:
        seen, values = np.concatenate([seen, rows]), np.concatenate([values, costs(rows)])
        if len(seen) >= evaluations:
            return
        hot = nas.one_hot(nas.masked(seen))[:, 3 * nas.STAGES :]  # depths show in what is left out
        guesses = [_guess(hot, column) for column in values.T]

        def predicted(codes: nas.Codes) -> Array:
            hot = nas.one_hot(nas.masked(codes))[:, 3 * nas.STAGES :]
            return np.stack([guess(hot) for guess in guesses], axis=1)  # noqa: B023

        rows = nsga2(predicted, inner, rng=rng)
