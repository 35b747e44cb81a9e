"""The default: ridges and the expected gain of hypervolume."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array, improvements, nondominated
from pliant.search.predict import Predictor, fit
from pliant.search.searchers.contract import candidates, rng_at
from pliant.search.searchers.design import Design

_ENUMERABLE = 8192  # spaces up to this size are ranked whole


@dataclass(frozen=True)
class Ridge:
    """Linear predictors of all objectives, then the candidate with the largest expected gain of hypervolume.

    After a space-filling start each step fits one ridge per objective to everything measured, ranks a pool of
    candidates (the whole space where it is small; else random ones and the descendants of the measured front, evolved
    on the predictors) by the hypervolume they would add, averaged over draws of the ridges' weights.

    Args:
        initial: how many configs the start measures; 0 for one per knob plus three, between 8 and 20.
        pool: about how many candidates are ranked.
        draws: how many plausible predictors the gain is averaged over.
        generations: rounds of evolution on the predictors.

    Raises:
        ValueError: a number below its least sensible value.
    """

    facts: ClassVar[Facts] = Facts(
        title="A Hardware-Aware System for Accelerating Deep Neural Network Optimization",
        year=2022,
        room="search",
        rows=("075",),
        needs=("data",),
        deviations=(
            "one network is measured per refit of the predictors, not a population",
            "candidates are chosen by expected gain of hypervolume under draws of the weights, not by NSGA-II ranks",
            "the ridge also sees products of two knobs, and logarithms of objectives, where these predict better",
        ),
    )

    initial: int = 0
    pool: int = 4096
    draws: int = 16
    generations: int = 8

    def __post_init__(self) -> None:
        at_least(self, initial=0, pool=16, draws=1, generations=1)

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        if len(configs) < (self.initial or min(20, max(8, len(space) + 3))):
            return Design().propose(space, configs, costs=costs, seed=seed)
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        models = [fit(c.one_hot(space, seen), c.levels(space, seen), column) for column in costs.T]
        front = nondominated(costs)
        rows = self._pool(space, seen, seen[front], models, rng)
        hot, levels = c.one_hot(space, rows), c.levels(space, rows)
        scale = np.ptp(costs, axis=0)
        reference = costs.max(axis=0) + 0.05 * np.where(scale > 0, scale, 1.0)
        corners = costs.min(axis=0) + rng.random((2048, costs.shape[1])) * (reference - costs.min(axis=0))
        drawn = np.stack([model.draw(hot, levels, self.draws, rng) for model in models], axis=2)
        gains = np.mean([improvements(sample, costs[front], reference, corners) for sample in drawn], axis=0)
        if not gains.any():
            gains = _hoped(drawn, costs[front], reference, corners)
        return c.decode(space, rows[gains.argmax()])

    def _pool(
        self, space: Space, seen: c.Codes, front: c.Codes, models: Sequence[Predictor], rng: np.random.Generator
    ) -> c.Codes:
        if space.size <= _ENUMERABLE:
            return c.new_rows(c.every(space), seen)
        share = max(4, self.pool // (2 * self.generations))
        everything = [
            c.draw(space, self.pool // 4, rng),
            c.mutate(space, c.cross(space, front, self.pool // 4, rng), rng),
        ]
        for _ in range(self.generations):
            rows = np.concatenate([*everything[-2:], front])
            hot, levels = c.one_hot(space, rows), c.levels(space, rows)
            drawn = np.stack([model.draw(hot, levels, 1, rng)[0] for model in models], axis=1)
            parents = rows[nondominated(drawn)]
            everything.append(c.mutate(space, c.cross(space, parents, share, rng), rng))
        rows = c.new_rows(np.concatenate(everything), seen)
        return rows if len(rows) else candidates(space, seen, self.pool, rng)


def _hoped(drawn: Array, front: Array, reference: Array, corners: Array) -> Array:
    """Gains of candidates that would have one, were all the fewest standard deviations better than predicted.

    Not simply where the predictors know least: under a logarithmic view that is where everything is worst.

    Args:
        drawn: [draws, candidates, objectives], none of which gains anything.
        front: [points, objectives].
        reference: [objectives].
        corners: [samples, objectives], see `improvements`.
    """
    middle, spread = drawn.mean(axis=0), drawn.std(axis=0)
    for deviations in (1, 2, 4, 8, 16):
        gains = improvements(middle - deviations * spread, front, reference, corners)
        if gains.any():
            return gains
    scale = np.ptp(middle, axis=0)
    return np.asarray(-(middle / np.where(scale > 0, scale, 1.0)).sum(axis=1))
