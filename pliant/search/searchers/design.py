"""Space filling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.searchers.contract import candidates, rng_at


@dataclass(frozen=True)
class Design:
    """Space filling: the ends, uniform shares, then every size in turn, each time as far as possible from all before.

    Sizes follow a van der Corput sequence; distance is Hamming's, and the largest least one wins (Johnson, Moore &
    Ylvisaker 1990, "Minimax and maximin distance designs").
    """

    facts: ClassVar[Facts] = Facts(
        title="Minimax and maximin distance designs",
        year=1990,
        room="search",
        deviations=("one point at a time, among those whose size is wanted next",),
    )

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        seen = set(configs)
        for config in [space.smallest(), space.largest(), *(space.uniform(share) for share in (0.5, 0.25, 0.75))]:
            if config not in seen:
                return config
        rng, known = rng_at(seed, len(configs)), c.encode(space, configs)
        rows = rng.permutation(candidates(space, known, 256, rng))
        level = _corput(len(configs))
        share = rows.clip(0).sum(axis=1) / max(1, int((c.counts_of(space) - 1).sum()))
        rows = rows[np.argsort(np.abs(share - level), kind="stable")[:16]]
        distances = (rows[:, None, :] != known[None, :, :]).sum(axis=2)
        return c.decode(space, rows[distances.min(axis=1).argmax()])


def _corput(n: int) -> float:
    """The n-th number of a sequence that fills (0, 1) evenly from any beginning (van der Corput 1935)."""
    share, value = 0.5, 0.0
    while n:
        value, n, share = value + share * (n % 2), n // 2, share / 2
    return value
