"""Random search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pliant.core import Config, Facts, Space
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.searchers.contract import candidates, rng_at


@dataclass(frozen=True)
class Random:
    """Configs at random, spread over small and large networks, without repetition.

    Bergstra & Bengio 2012, "Random Search for Hyper-Parameter Optimization"
    <https://www.jmlr.org/papers/v13/bergstra12a.html>.
    """

    facts: ClassVar[Facts] = Facts(
        title="Random Search for Hyper-Parameter Optimization",
        year=2012,
        room="search",
        deviations=("configs spread over sizes instead of drawing knobs independently, and none comes twice",),
    )

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng = rng_at(seed, len(configs))
        rows = candidates(space, c.encode(space, configs), 64, rng)
        return c.decode(space, rows[rng.integers(len(rows))])
