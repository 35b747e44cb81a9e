"""What to measure next: pure functions of the seed and of what was measured so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from pliant.core import Config, Facts, Space, seeded
from pliant.search import codes as c
from pliant.search.pareto import Array, improvements, nondominated
from pliant.search.predict import Predictor, fit
from pliant.search.trials import quiet

_ENUMERABLE = 8192  # spaces up to this size are ranked whole


class Proposer(Protocol):
    """Chooses the next config. Must be pure: the same arguments give the same config, also in another process."""

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """A config that is not among `configs`.

        Args:
            space: what can be chosen; it holds at least one config that was not measured.
            configs: what was measured, in order.
            costs: float64 [configs, objectives], smaller is better.
            seed: of the whole search; mix in `len(configs)`.
        """
        ...


def _rng(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng(seeded(seed, "search", step).initial_seed())


def _corput(n: int) -> float:
    """The n-th number of a sequence that fills (0, 1) evenly from any beginning (van der Corput 1935)."""
    share, value = 0.5, 0.0
    while n:
        value, n, share = value + share * (n % 2), n // 2, share / 2
    return value


def _candidates(space: Space, seen: c.Codes, n: int, rng: np.random.Generator) -> c.Codes:
    """Rows that were not measured: all of them where the space is small, else about `n` random ones."""
    if space.size <= max(n, 2 * len(seen)):
        return c.new_rows(c.every(space), seen)
    rows = c.new_rows(c.draw(space, n, rng), seen)
    while len(rows) == 0:  # only by rare bad luck: at least half of the space is unseen
        rows = c.new_rows(rng.integers(0, c.counts_of(space), (n, len(space))), seen)
    return rows


@dataclass(frozen=True)
class Random:
    """Configs at random, spread over small and large networks, without repetition."""

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng = _rng(seed, len(configs))
        rows = _candidates(space, c.encode(space, configs), 64, rng)
        return c.decode(space, rows[rng.integers(len(rows))])


@dataclass(frozen=True)
class Tpe:
    """Optuna's multi-objective tree-structured Parzen estimator, as a baseline or for spaces where nothing is linear.

    Ozaki, Tanigaki, Watanabe & Onishi 2020, "Multiobjective tree-structured Parzen estimator for computationally
    expensive optimization problems". A proposal that was measured before is replaced by a random one.
    """

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = _rng(seed, len(configs)), set(configs)
        with quiet() as optuna:
            choices = {k.name: optuna.distributions.CategoricalDistribution(k.choices) for k in space}
            sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)))
            study = optuna.create_study(directions=["minimize"] * costs.shape[1], sampler=sampler)
            for config, row in zip(configs, costs, strict=True):
                trial = optuna.create_trial(values=row.tolist(), params=dict(config), distributions=choices)
                study.add_trial(trial)
            for _ in range(8):
                config = space.validate(study.ask(choices).params)
                if config not in seen:
                    return config
        return Random().propose(space, configs, costs=costs, seed=seed)


@dataclass(frozen=True)
class Design:
    """Space filling: the ends, uniform shares, then every size in turn, each time as far as possible from all before.

    Sizes follow a van der Corput sequence; distance is Hamming's, and the largest least one wins (Johnson, Moore &
    Ylvisaker 1990, "Minimax and maximin distance designs").
    """

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        seen = set(configs)
        for config in [space.smallest(), space.largest(), *(space.uniform(share) for share in (0.5, 0.25, 0.75))]:
            if config not in seen:
                return config
        rng, known = _rng(seed, len(configs)), c.encode(space, configs)
        rows = rng.permutation(_candidates(space, known, 256, rng))
        level = _corput(len(configs))
        share = rows.sum(axis=1) / max(1, int((c.counts_of(space) - 1).sum()))
        rows = rows[np.argsort(np.abs(share - level), kind="stable")[:16]]
        distances = (rows[:, None, :] != known[None, :, :]).sum(axis=2)
        return c.decode(space, rows[distances.min(axis=1).argmax()])


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
        for name, least in (("initial", 0), ("pool", 16), ("draws", 1), ("generations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        if len(configs) < (self.initial or min(20, max(8, len(space) + 3))):
            return Design().propose(space, configs, costs=costs, seed=seed)
        rng, seen = _rng(seed, len(configs)), c.encode(space, configs)
        models = [fit(c.one_hot(space, seen), c.levels(space, seen), column) for column in costs.T]
        front = nondominated(costs)
        rows = self._pool(space, seen, seen[front], models, rng)
        hot, levels = c.one_hot(space, rows), c.levels(space, rows)
        scale = np.ptp(costs, axis=0)
        reference = costs.max(axis=0) + 0.05 * np.where(scale > 0, scale, 1.0)
        corners = costs.min(axis=0) + rng.random((2048, costs.shape[1])) * (reference - costs.min(axis=0))
        drawn = np.stack([model.draw(hot, levels, self.draws, rng) for model in models], axis=2)
        gains = np.mean([improvements(sample, costs[front], reference, corners) for sample in drawn], axis=0)
        # where no draw promises anything, go where the predictors know least
        doubt = (drawn.std(axis=0) / np.where(scale > 0, scale, 1.0)).sum(axis=1)
        return c.decode(space, rows[np.lexsort((-doubt, -gains))[0]])

    def _pool(
        self, space: Space, seen: c.Codes, front: c.Codes, models: Sequence[Predictor], rng: np.random.Generator
    ) -> c.Codes:
        if space.size <= _ENUMERABLE:
            return c.new_rows(c.every(space), seen)
        share = max(4, self.pool // (2 * self.generations))
        everything = [c.draw(space, self.pool // 4, rng), c.mutate(space, c.cross(front, self.pool // 4, rng), rng)]
        for _ in range(self.generations):
            rows = np.concatenate([*everything[-2:], front])
            hot, levels = c.one_hot(space, rows), c.levels(space, rows)
            drawn = np.stack([model.draw(hot, levels, 1, rng)[0] for model in models], axis=1)
            parents = rows[nondominated(drawn)]
            everything.append(c.mutate(space, c.cross(parents, share, rng), rng))
        rows = c.new_rows(np.concatenate(everything), seen)
        return rows if len(rows) else _candidates(space, seen, self.pool, rng)
