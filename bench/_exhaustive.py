"""Spaces measured whole, once, and searches replayed on what was measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pliant
from bench._common import cache_root, in_workers, key_of, one_thread
from pliant.core import Config, Knob, Space
from pliant.data import Dataset
from pliant.search import AskTell, Front, Proposer, SearchSettings, read_history
from pliant.search.pareto import hypervolume

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Every:
    """Every config of a space, in order."""

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        seen = set(configs)
        return next(config for config in space.configs() if config not in seen)


class Restricted:
    """A family of which only a part of the space is searched.

    Args:
        net: the family.
        space: the part, with the same knobs.
    """

    def __init__(self, net: Any, space: Space) -> None:
        self._net, self.space = net, space
        self.name = net.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)


def part_of(space: Space, least: int) -> Space:
    """The smallest sub-space of at least `least` configs in which every knob keeps both its ends.

    Of equal ones that whose knobs keep the most even numbers of choices. The whole space where it is smaller.
    """
    options = [range(min(2, len(knob.choices)), len(knob.choices) + 1) for knob in space]
    sizes = [(math.prod(counts), -min(counts, default=1), counts) for counts in product(*options)]
    large_enough = [size for size in sizes if size[0] >= least]
    kept = min(large_enough)[2] if large_enough else [len(knob.choices) for knob in space]
    return Space([Knob(knob.name, _spread(knob.choices, count)) for knob, count in zip(space, kept, strict=True)])


def _spread(choices: Sequence[Any], count: int) -> tuple[Any, ...]:
    """`count` choices evenly spread, both ends among them."""
    places = [round(i * (len(choices) - 1) / max(1, count - 1)) for i in range(count)]
    return tuple(choices[place] for place in places)


@dataclass(frozen=True)
class Table:
    """A space with what all its configs cost.

    Args:
        space: what can be chosen.
        costs: by config, smaller is better, in the order of the objectives.
        values: by config, as they were measured, by name.
    """

    space: Space
    costs: Mapping[Config, tuple[float, ...]]
    values: Mapping[Config, Mapping[str, float]]

    @classmethod
    def of(cls, space: Space, front: Front, count: int | None = None) -> "Table":
        """What an exhaustive search found.

        Args:
            space: what was searched.
            front: its result.
            count: how many of the objectives a search is told; the others are for judging. None for all.
        """
        axes = front.objectives[:count]
        costs = {p.config: tuple(axis.cost(p.values[axis.key]) for axis in axes) for p in front.trials}
        return cls(space, costs, {p.config: dict(p.values) for p in front.trials})

    @property
    def rows(self) -> Array:
        """[configs, objectives]."""
        return np.asarray(list(self.costs.values()))

    def walk(self, proposer: Proposer, n: int, seed: int) -> list[Config]:
        """The configs that a search asks for, in order."""
        width = len(next(iter(self.costs.values())))
        loop = AskTell(proposer, self.space, objectives=width, seed=seed)
        asked = []
        for _ in range(min(n, self.space.size)):
            asked.append(loop.ask())
            loop.tell(asked[-1], self.costs[asked[-1]])
        return asked

    def share(self, configs: Iterable[Config]) -> float:
        """Hypervolume of configs over that of the whole space; the reference is the worst point of the space."""
        corner = self.rows.max(axis=0)
        found = np.asarray([self.costs[config] for config in configs])
        return hypervolume(found, corner) / hypervolume(self.rows, corner)

    def shares(self, proposer: Proposer, n: int, seeds: Iterable[int]) -> list[float]:
        """`share` of `n` evaluations for each seed."""
        return [self.share(self.walk(proposer, n, seed)) for seed in seeds]


def measured(
    net: Any,
    data: Dataset | None,
    *,
    objectives: Sequence[Any],
    settings: SearchSettings,
    what: Mapping[str, Any],
    limit: int | None = None,
) -> tuple[Front, float]:
    """Everything in a space, measured by a search that goes on where it was stopped; and the seconds that took.

    Args:
        net: what is searched.
        data: as for `pliant.search`.
        objectives: as for `pliant.search`.
        settings: as for `pliant.search`; the proposer is replaced.
        what: JSON data that names the measurement, for the folder in the cache.
        limit: at most so many configs.
    """
    folder = cache_root() / f"exhaustive-{key_of(what)}"
    count = net.space.size if limit is None else min(limit, net.space.size)
    settings = replace(settings, proposer=Every())
    front = pliant.search(net, data, objectives=objectives, n_trials=count, run=folder, settings=settings)
    return front, sum(outcome.seconds for outcome in read_history(folder))


def replayed(jobs: Sequence[tuple[Table, Proposer, int, int]]) -> list[list[Config]]:
    """`Table.walk` of many (table, proposer, n, seed), on two processes."""
    return list(in_workers(_walk, jobs))


def _walk(job: tuple[Table, Proposer, int, int]) -> list[Config]:
    one_thread()
    table, proposer, n, seed = job
    return table.walk(proposer, n, seed)


def medians(table: Table, contestants: Mapping[str, Proposer], n: int, *, seeds: Sequence[int]) -> dict[str, float]:
    """The median share of the hypervolume over seeds, by contestant."""
    jobs = [(table, proposer, n, seed) for proposer in contestants.values() for seed in seeds]
    walks = iter(replayed(jobs))
    return {name: median(table.share(walk) for walk in islice(walks, len(seeds))) for name in contestants}
