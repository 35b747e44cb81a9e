"""Drawing sub-networks: a size first, then every knob near it."""

import math
from collections.abc import Sequence

import torch

from pliant.core import Knob
from pliant.core.config import Value


def kind_of(knob: Knob) -> str:
    """The kind of a knob; blocks that can be skipped are depth, too."""
    return "depth" if knob.kind == "block" else knob.kind


def near_a_size(
    knobs: Sequence[Knob], generator: torch.Generator, *, spread: float, lean: float = 1.0, smallest: bool = False
) -> dict[str, Value]:
    """A size for each kind of knob, and a choice for every knob near it.

    Blocks are kept one by one, with a probability drawn from [1/2, 1] for all of them: with a size of their own, as
    counted knobs have it, networks of hardly any block would be half of all draws, and nobody wants those.

    Args:
        knobs: what is drawn.
        generator: where the numbers come from.
        spread: standard deviation around the size, as a share of a knob's range; what would leave it stops at its end.
        lean: sizes are uniform random numbers to this power: above 1, small ones are drawn more often.
        smallest: whether every counted knob has its smallest choice instead; blocks are drawn all the same.
    """
    kinds = sorted({kind_of(knob) for knob in knobs})
    sizes = dict(zip(kinds, torch.rand(len(kinds), generator=generator).tolist(), strict=True))
    strays = (spread * torch.randn(len(knobs), generator=generator)).tolist()
    tosses = torch.rand(len(knobs), generator=generator).tolist()
    values = {}
    for knob, stray, toss in zip(knobs, strays, tosses, strict=True):
        size = sizes[kind_of(knob)]
        if isinstance(knob.choices[-1], bool):
            place = 0.0 if toss < size / 2 else 1.0
        else:
            place = 0.0 if smallest else size**lean + stray
        place = min(max(place, 0.0), 1.0 - 1e-9)
        values[knob.name] = knob.choices[int(place * len(knob.choices))]
    return values


def check_share(name: str, value: float) -> None:
    """Raises `ValueError` for a share outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_spread(value: float) -> None:
    """Raises `ValueError` for a negative spread."""
    if not value >= 0:
        raise ValueError(f"spread must not be negative, got {value}")


def check_lean(value: float) -> None:
    """Raises `ValueError` for a power that is not positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"lean must be a positive number, got {value}")


def check_count(name: str, value: int) -> None:
    """Raises `ValueError` for less than one."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
