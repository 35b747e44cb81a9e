"""Sandwich: the widest, the smallest and random sub-networks in every step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.core import Config, Facts
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.elastic.recipes._sizes import check_share


@final
@dataclass(frozen=True)
class Sandwich(ElasticRecipe):
    """The widest, the smallest and some random sub-networks in every step.

    The sandwich rule of "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models" (Yu et al. 2020,
    section 3.1). A step costs two to three times the widest network's.

    Args:
        random: how many random sub-networks besides the widest and the smallest.
        distil: in-place distillation: the widest learns from the labels, all others from its output of the same step,
            through which no gradient flows (for classes its probabilities, else the squared error to it). The paper
            does so; in short trainings it hurts, because teacher and pupils share their features.
        labels: with distillation the share of the labels in the loss of all others, in [0, 1].

    Raises:
        ValueError: a negative `random`, or `labels` outside [0, 1].
    """

    random: int = 2
    distil: bool = False
    labels: float = 0.0
    facts: ClassVar[Facts] = Facts(
        title="BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
        year=2020,
        room="elastic",
        rows=("213",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=(
            "By default every sub-network learns from the labels; `distil=True` distils in place as the paper does.",
            "Dropout and weight decay act on every sub-network, not on the widest alone.",
            "Initialisation and learning rates are those of any training.",
        ),
    )

    def __post_init__(self) -> None:
        if self.random < 0:
            raise ValueError(f"random must not be negative, got {self.random}")
        check_share("labels", self.labels)

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """Widest, smallest, and `random` uniform ones."""
        return [net.space.largest(), net.space.smallest(), *(net.sample(generator) for _ in range(self.random))]

    def labels_of(self, net: Elastic, config: Config) -> float:
        """All for the widest, `labels` for the others, where they are distilled."""
        return self.labels if self.distil else 1.0
