"""NSGA-II."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pliant.core import Config, Facts, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array, crowding, ranks
from pliant.search.searchers.contract import candidates, one_new, rng_at


@dataclass(frozen=True)
class Nsga2:
    """NSGA-II: generations, of parents and children together the least dominated and least crowded live on.

    Deb, Pratap, Agarwal & Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II"
    <https://doi.org/10.1109/4235.996017>.

    Args:
        population: how many live, and how many children a generation has.
        crossover: how often a child has two parents; each knob comes from either.
        mutation: how often a knob is drawn anew; 0 for once per config on average.

    Raises:
        ValueError: a population below 2, or a share outside of 0 to 1.
    """

    facts: ClassVar[Facts] = Facts(
        title="A fast and elitist multiobjective genetic algorithm: NSGA-II",
        year=2002,
        room="search",
        deviations=(
            "knobs are choices, so that crossover takes each from either parent and mutation draws it anew",
            "no config comes twice",
        ),
    )

    population: int = 20
    crossover: float = 0.9
    mutation: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, population=2)
        if not (0 <= self.crossover <= 1 and 0 <= self.mutation <= 1):
            raise ValueError(f"crossover and mutation are shares, got {self.crossover} and {self.mutation}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        if len(configs) < self.population:
            rows = candidates(space, seen, 64, rng)
            return c.decode(space, rows[rng.integers(len(rows))])
        living = self._living(costs)
        children = offspring(
            space, seen[living], costs[living], 16, rng=rng, crossover=self.crossover, mutation=self.mutation
        )
        return one_new(space, children, seen, rng=rng)

    def _living(self, costs: Array) -> NDArray[np.int64]:
        """Who lives after the last whole generation, from the history alone."""
        size = self.population
        living = np.arange(size)
        for begin in range(size, len(costs) - size + 1, size):
            everyone = np.concatenate([living, np.arange(begin, begin + size)])
            living = everyone[survivors(costs[everyone], size)]
        return living


def survivors(costs: Array, n: int) -> NDArray[np.int64]:
    """The `n` least dominated, among those of the last rank the least crowded: int64 [n], best first."""
    rank = ranks(costs)
    return np.lexsort((-crowding(costs, rank), rank))[:n]


def offspring(
    space: Space,
    rows: c.Codes,
    costs: Array,
    n: int,
    *,
    rng: np.random.Generator,
    crossover: float = 0.9,
    mutation: float = 0.0,
) -> c.Codes:
    """`n` children of a population, each parent the better of two random members.

    Args:
        space: what can be chosen.
        rows: [members, knobs].
        costs: [members, objectives].
        n: how many.
        rng: of every choice.
        crossover: how often a child has two parents.
        mutation: how often a knob is drawn anew; 0 for once per config on average.
    """
    rank = ranks(costs)
    place = np.empty(len(rows), dtype=np.int64)  # in the order of rank, then of crowding: smaller wins
    place[np.lexsort((-crowding(costs, rank), rank))] = np.arange(len(rows))
    duels = rng.integers(len(rows), size=(2, n, 2))
    winners = np.where(place[duels[..., 0]] <= place[duels[..., 1]], duels[..., 0], duels[..., 1])
    mothers, fathers = rows[winners[0]], rows[winners[1]]
    mated = c.mate(space, mothers, fathers, rng)
    children = np.where(rng.random((n, 1)) < crossover, mated, mothers)
    counts = c.counts_of(space)
    anew = (rng.random(children.shape) < (mutation or 1 / max(1, len(counts)))) & (children >= 0) & (counts > 1)
    shifts = rng.integers(1, np.maximum(counts, 2), children.shape)
    return c.settle(space, np.where(anew, (children + shifts) % counts, children), rng)
