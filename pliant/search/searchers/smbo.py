"""Sequential model-based optimisation with random forests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.searchers.contract import candidates, rng_at
from pliant.search.searchers.random_search import Random


@dataclass(frozen=True)
class Smbo:
    """A random forest over the encoding, and the config whose expected improvement is largest.

    Hutter, Hoos & Leyton-Brown 2011, "Sequential Model-Based Optimization for General Algorithm Configuration"
    <https://doi.org/10.1007/978-3-642-25566-3_40> (SMAC): trees cope with names and with knobs that are not there, and
    disagree where little is known. Several objectives are turned into one by weights drawn anew at each step (Knowles
    2006, ParEGO).

    Args:
        initial: how many configs are measured at random first.
        pool: how many candidates are ranked.
        trees: in the forest.
        chance: how often a config is taken at random instead.

    Raises:
        ValueError: a number below its least sensible value, or a share outside of 0 to 1.
    """

    facts: ClassVar[Facts] = Facts(
        title="Sequential Model-Based Optimization for General Algorithm Configuration",
        year=2011,
        room="search",
        rows=("160",),
        deviations=(
            "several objectives become one by the augmented Chebyshev norm of ParEGO, weights drawn at each step",
            "candidates are random configs and descendants of the best ones, ranked together",
        ),
    )

    initial: int = 10
    pool: int = 1024
    trees: int = 40
    chance: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, initial=2, pool=16, trees=2)
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be in [0, 1], got {self.chance}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng = rng_at(seed, len(configs), "smbo")
        if len(configs) < self.initial or rng.random() < self.chance:
            return Random().propose(space, configs, costs=costs, seed=seed)
        from sklearn.ensemble import RandomForestRegressor  # a second to import, which other searchers do without

        seen, target = c.encode(space, configs), _single(costs, rng)
        forest = RandomForestRegressor(
            self.trees, max_features=5 / 6, min_samples_leaf=2, random_state=int(rng.integers(2**31))
        )
        forest.fit(c.one_hot(space, seen), target)
        best = seen[np.argsort(target, kind="stable")[:10]]
        near = c.mutate(space, np.repeat(best, max(1, self.pool // 20), axis=0), rng)
        rows = np.concatenate([candidates(space, seen, self.pool // 2, rng), c.new_rows(near, seen)])
        hot = c.one_hot(space, rows)
        guesses = np.stack([tree.predict(hot) for tree in forest.estimators_])
        gains = _improvement(guesses.mean(axis=0), guesses.std(axis=0), float(target.min()))
        return c.decode(space, rows[int(np.argmax(gains))])


def _single(costs: Array, rng: np.random.Generator) -> Array:
    """Costs as one number each: the augmented Chebyshev norm with weights drawn evenly, of costs scaled to 0..1."""
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    weights = rng.dirichlet(np.ones(costs.shape[1]))
    weighted = scaled * weights
    return np.asarray(weighted.max(axis=1) + 0.05 * weighted.sum(axis=1))


def _improvement(mean: Array, spread: Array, best: float) -> Array:
    """Expected improvement below `best` under normal beliefs (Jones, Schonlau & Welch 1998)."""
    from scipy.stats import norm

    spread = np.maximum(spread, 1e-9)
    z = (best - mean) / spread
    return np.asarray((best - mean) * norm.cdf(z) + spread * norm.pdf(z))
