"""Sandwich: the widest, the smallest and random sub-networks in every step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.core import Config, Facts
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe


@final
@dataclass(frozen=True)
class Sandwich(ElasticRecipe):
    """The widest, the smallest and some random sub-networks in every step.

    The sandwich rule of "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models" (Yu et al. 2020,
    section 3.1), with label losses for every sub-network. A step costs two to three times the widest network's.

    Args:
        random: how many random sub-networks besides the widest and the smallest.
        distil: in-place distillation from the widest network; only False is built: in short trainings it hurts, because
            teacher and student share their features.

    Raises:
        ValueError: a negative `random`, or `distil=True`.
    """

    random: int = 2
    distil: bool = False
    facts: ClassVar[Facts] = Facts(
        title="BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
        year=2020,
        room="elastic",
        rows=("213",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=("Every sub-network learns from the labels; no in-place distillation.",),
    )

    def __post_init__(self) -> None:
        if self.random < 0:
            raise ValueError(f"random must not be negative, got {self.random}")
        if self.distil:
            raise ValueError("distil=True is not built; Sandwich(distil=False) trains every sub-network on the labels")

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """Widest, smallest, and `random` uniform ones."""
        return [net.space.largest(), net.space.smallest(), *(net.sample(generator) for _ in range(self.random))]
