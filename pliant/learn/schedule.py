"""Learning rates by step: a share of the full rate, a pure function of the step, so that resuming needs no state."""

import math
import sys
from collections.abc import Callable
from typing import cast

from pliant.core import resolve

__all__ = ["constant", "cosine", "linear"]


def cosine(done: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - done


def constant(done: float) -> float:
    """Always 1."""
    return 1.0


def schedule(name: str, *, steps: int, warmup: float) -> Callable[[int], float]:
    """The share of the learning rate at each step 0 .. steps-1.

    Args:
        name: `cosine`, `linear` or `constant`: how it falls after the warm-up.
        steps: how many optimizer steps the training has.
        warmup: share of the steps in which it rises linearly from almost 0 to 1, in [0, 1).

    Raises:
        ValueError: an unknown name.
    """
    fall = cast(Callable[[float], float], resolve(sys.modules[__name__], name, what="schedule"))
    rising = round(warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return fall((step - rising) / max(1, steps - rising))

    return share
