"""Concurrent search: a predictor inside, real measurements outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.predict import fit
from pliant.search.searchers.contract import candidates, one_new, rng_at
from pliant.search.searchers.nsga2 import offspring, survivors


@dataclass(frozen=True)
class Linas:
    """LINAS: in turns, fit predictors to all that was measured, evolve on them, and measure what came out.

    Cummings, Sarah, Sridhar, Szankin, Munoz & Sundaresan 2022, "A Hardware-Aware Framework for Accelerating Neural
    Architecture Search Across Modalities" <https://arxiv.org/abs/2205.10358>, algorithm 1: the inner search is NSGA-II
    on ridge predictors, whose last population is measured.

    Args:
        population: how many configs are measured between two fits.
        inner: size of the population on the predictors.
        generations: of the inner search.

    Raises:
        ValueError: a number below its least sensible value.
    """

    facts: ClassVar[Facts] = Facts(
        title="A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities",
        year=2022,
        room="search",
        rows=("075",),
        needs=("data",),
        deviations=("the predictors are this package's ridges, which choose their own view of an objective",),
    )

    population: int = 20
    inner: int = 100
    generations: int = 100

    def __post_init__(self) -> None:
        at_least(self, population=1, inner=2, generations=1)

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        turn, place = divmod(len(configs), self.population)
        if turn == 0:
            rows = candidates(space, seen, 64, rng)
            return c.decode(space, rows[rng.integers(len(rows))])
        known = turn * self.population
        batch = _batch(self, space, tuple(configs[:known]), costs[:known].tobytes(), costs.shape[1], seed)
        return one_new(space, np.roll(batch, -place, axis=0) if len(batch) else seen[:1], seen, rng=rng)


@lru_cache(maxsize=4)  # all configs of a turn come out of one inner search
def _batch(linas: Linas, space: Space, configs: tuple[Config, ...], raw: bytes, objectives: int, seed: int) -> c.Codes:
    """What the inner search ends with and was not measured, best first."""
    costs = np.frombuffer(raw, dtype=np.float64).reshape(len(configs), objectives)
    rng, seen = rng_at(seed, len(configs), "inner"), c.encode(space, configs)
    hot, levels = c.one_hot(space, seen), c.levels(space, seen)
    models = [fit(hot, levels, column) for column in costs.T]

    def predicted(rows: c.Codes) -> Array:
        hot, levels = c.one_hot(space, rows), c.levels(space, rows)
        return np.stack([model.mean(hot, levels) for model in models], axis=1)

    rows = seen[survivors(costs, linas.inner)]
    rows = np.concatenate([rows, c.draw(space, max(0, linas.inner - len(rows)), rng)])
    values = predicted(rows)
    for _ in range(linas.generations):
        children = offspring(space, rows, values, linas.inner, rng=rng)
        rows, values = np.concatenate([rows, children]), np.concatenate([values, predicted(children)])
        _, first = np.unique(rows, axis=0, return_index=True)
        first = np.sort(first)
        kept = first[survivors(values[first], linas.inner)]
        rows, values = rows[kept], values[kept]
    known = {row.tobytes() for row in np.ascontiguousarray(seen)}
    return rows[[row.tobytes() not in known for row in np.ascontiguousarray(rows)]]
