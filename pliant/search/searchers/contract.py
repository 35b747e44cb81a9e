"""The contract of searchers: a pure function from what was measured to what is measured next, and its loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pliant.core import Config, PliantError, Space, seeded
from pliant.search import codes as c
from pliant.search.pareto import Array


class Proposer(Protocol):
    """Chooses the next config. Must be pure: the same arguments give the same config, also in another process.

    That is what makes a search resume exactly: a searcher has no state but the history, from which populations and
    trees are made again.
    """

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """A config that is not among `configs`.

        Args:
            space: what can be chosen; it holds at least one config that was not measured.
            configs: what was asked for, in order.
            costs: float64 [configs, objectives], finite, smaller is better.
            seed: of the whole search; mix in `len(configs)`.
        """
        ...


class AskTell:
    """A search from outside: `ask` for a config, measure it, `tell` its costs.

    Several may be asked for before the first is told. What is not told yet counts as average, what failed as the worst
    so far, so that neither is asked for again nor sought out.

    Args:
        proposer: what chooses.
        space: from what.
        objectives: how many costs a config has.
        seed: of every choice.
        lag: how many results behind the choice always is, so that it does not depend on which of several workers is
            done first: one less than there are workers.

    Raises:
        ValueError: no objectives, or a negative lag.
    """

    def __init__(self, proposer: Proposer, space: Space, *, objectives: int, seed: int = 0, lag: int = 0) -> None:
        if objectives < 1 or lag < 0:
            raise ValueError(f"a search needs at least 1 objective and no negative lag, got {objectives} and {lag}")
        self.proposer, self.space, self.objectives, self.seed, self.lag = proposer, space, objectives, seed, lag
        self._configs: list[Config] = []
        self._costs: dict[Config, Array | None] = {}

    def __len__(self) -> int:
        return len(self._configs)

    def ask(self) -> Config:
        """The next config.

        Raises:
            PliantError: every config was asked for, or the proposer repeated one.
        """
        if len(self._configs) >= self.space.size:
            raise PliantError(f"all {self.space.size} configs of the space were asked for")
        config = self.space.validate(
            self.proposer.propose(self.space, list(self._configs), costs=self._known(), seed=self.seed)
        )
        where = type(self.proposer).__qualname__
        if config in set(self._configs):
            raise PliantError(f"the proposer repeated {config.to_json()}", where=where)
        self._configs.append(config)
        return config

    def tell(self, config: Mapping[str, Any], costs: Sequence[float] | None) -> None:
        """What a config costs, one finite number per objective, smaller is better; None if it failed.

        A config that was not asked for is taken as asked for now.

        Raises:
            ValueError: not one finite number per objective, a config of another space, or one that was told already.
        """
        config = self.space.validate(config)
        if config in self._costs:
            raise ValueError(f"{config.to_json()} was told already")
        row = None if costs is None else np.asarray(costs, dtype=np.float64)
        if row is not None and (row.shape != (self.objectives,) or not np.isfinite(row).all()):
            raise ValueError(f"costs are {self.objectives} finite numbers, got {costs!r}")
        if config not in set(self._configs):
            self._configs.append(config)
        self._costs[config] = row

    def _known(self) -> Array:
        """Costs of all that was asked for: those not told and the last `lag` as average, failures as the worst."""
        costs = np.full((len(self._configs), self.objectives), np.nan)
        failed = np.zeros(len(self._configs), dtype=bool)
        for number, config in enumerate(self._configs[: max(0, len(self._configs) - self.lag)]):
            row = self._costs.get(config, np.full(self.objectives, np.nan))
            failed[number] = row is None
            costs[number] = np.nan if row is None else row
        known = costs[np.isfinite(costs).all(axis=1)]
        worst = known.max(axis=0) if len(known) else np.zeros(self.objectives)
        mean = known.mean(axis=0) if len(known) else np.zeros(self.objectives)
        costs[failed] = worst
        return np.where(np.isnan(costs), mean, costs)

    def save(self) -> dict[str, Any]:
        """All there is to know, as plain JSON data: the seed and what was asked and told, in order."""
        told = [
            [dict(config), config in self._costs, None if (row := self._costs.get(config)) is None else row.tolist()]
            for config in self._configs
        ]
        return {"objectives": self.objectives, "seed": self.seed, "lag": self.lag, "asked": told}

    @classmethod
    def resume(cls, data: Mapping[str, Any], proposer: Proposer, *, space: Space) -> "AskTell":
        """The search as it was when `save` gave `data`: it asks what the other one would have asked."""
        found = cls(proposer, space, objectives=data["objectives"], seed=data["seed"], lag=data["lag"])
        for values, told, costs in data["asked"]:
            config = space.validate(Config(values))
            found._configs.append(config)
            if told:
                found.tell(config, costs)
        return found


def rng_at(seed: int, step: int, *purpose: str) -> np.random.Generator:
    """The randomness of one step of a search."""
    return np.random.default_rng(seeded(seed, "search", *purpose, step).initial_seed())


def candidates(space: Space, seen: c.Codes, n: int, rng: np.random.Generator) -> c.Codes:
    """Rows that were not measured: all of them where the space is small, else about `n` random ones."""
    if space.size <= max(n, 2 * len(seen)):
        return c.new_rows(c.every(space), seen)
    rows = c.new_rows(c.draw(space, n, rng), seen)
    while len(rows) == 0:  # only by rare bad luck: at least half of the space is unseen
        rows = c.new_rows(c.uniform(space, n, rng), seen)
    return rows


def one_new(space: Space, rows: c.Codes, seen: c.Codes, *, rng: np.random.Generator) -> Config:
    """The first of `rows` that was not measured, else one of their descendants, else a random one."""
    known = {row.tobytes() for row in np.ascontiguousarray(seen)}
    for _ in range(8):
        for row in np.ascontiguousarray(rows):
            if row.tobytes() not in known:
                return c.decode(space, row)
        rows = c.mutate(space, rows, rng)
    left = candidates(space, seen, 64, rng)
    return c.decode(space, left[rng.integers(len(left))])
