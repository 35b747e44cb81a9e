"""Regularised evolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space
from pliant.search import codes as c
from pliant.search.pareto import Array, crowding, ranks
from pliant.search.searchers.contract import one_new, rng_at
from pliant.search.searchers.random_search import Random


@dataclass(frozen=True)
class Evolution:
    """Regularised evolution: the oldest of the population dies, whatever it is worth.

    Real, Aggarwal, Huang & Le 2019, "Regularized Evolution for Image Classifier Architecture Search"
    <https://arxiv.org/abs/1802.01548>, algorithm 1: of `tournament` random members of the population (the last
    `population` that were measured) the best has a child, which differs in one knob.

    Args:
        population: how many live.
        tournament: how many compete for a child.

    Raises:
        ValueError: a number below 1, or a tournament larger than the population.
    """

    facts: ClassVar[Facts] = Facts(
        title="Regularized Evolution for Image Classifier Architecture Search",
        year=2019,
        room="search",
        deviations=(
            "with several objectives the best is the one of the least non-domination rank, then the least crowded",
            "no config comes twice",
        ),
    )

    population: int = 20
    tournament: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.tournament <= self.population:
            raise ValueError(f"1 <= tournament <= population, got {self.tournament} and {self.population}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        if len(configs) < self.population:
            return Random().propose(space, configs, costs=costs, seed=seed)
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        living = np.arange(len(configs) - self.population, len(configs))
        rivals = rng.choice(living, self.tournament, replace=False)
        rank = ranks(costs[rivals])
        best = rivals[np.lexsort((-crowding(costs[rivals], rank), rank))[0]]
        children = c.mutate(space, np.repeat(seen[best][None], 16, axis=0), rng, most=1)
        return one_new(space, children, seen, rng=rng)
