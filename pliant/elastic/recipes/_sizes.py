"""Drawing sub-networks: a size first, then every knob near it."""

from collections.abc import Sequence

import torch

from pliant.core import Knob
from pliant.core.config import Value


def kind_of(knob: Knob) -> str:
    """The kind of a knob; blocks that can be skipped are depth, too."""
    return "depth" if knob.kind == "block" else knob.kind


def near_a_size(knobs: Sequence[Knob], generator: torch.Generator, *, spread: float) -> dict[str, Value]:
    """A size for each kind of knob, uniformly, and a choice for every knob near it.

    Args:
        knobs: what is drawn.
        generator: where the numbers come from.
        spread: standard deviation around the size, as a share of a knob's range; what would leave it stops at its end.
    """
    kinds = sorted({kind_of(knob) for knob in knobs})
    sizes = dict(zip(kinds, torch.rand(len(kinds), generator=generator).tolist(), strict=True))
    strays = (spread * torch.randn(len(knobs), generator=generator)).tolist()
    values = {}
    for knob, stray in zip(knobs, strays, strict=True):
        place = min(max(sizes[kind_of(knob)] + stray, 0.0), 1.0 - 1e-9)
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


def check_count(name: str, value: int) -> None:
    """Raises `ValueError` for less than one."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
