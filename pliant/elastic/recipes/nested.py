"""Nested: one random sub-network a step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.core import Config, Facts
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe


@final
@dataclass(frozen=True)
class Nested(ElasticRecipe):
    """One random nested sub-network a step, trained on the labels.

    The cheapest recipe: a step costs what the drawn sub-network costs, about half the widest one. With the steps
    doubled it costs little more than training the largest network alone and gives the whole family. The random,
    sorted, one-sub-network-at-a-time form of "SortedNet, a Place for Every Network and Every Network in its Place"
    (Valipour et al. 2023, algorithm 1).

    Args:
        whole: share of steps that run the widest network instead of a drawn one. The widest network is one of very
            many, so under a uniform draw it would hardly ever be trained as such.

    Raises:
        ValueError: `whole` is outside [0, 1].
    """

    whole: float = 0.25
    facts: ClassVar[Facts] = Facts(
        title="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for "
        "Training Many-in-One Neural Networks",
        year=2023,
        room="elastic",
        rows=("010",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=("A share of the steps always runs the widest network.",),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole must be in [0, 1], got {self.whole}")

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """One config: the widest with probability `whole`, else uniform over every knob."""
        chance = float(torch.rand((), generator=generator))
        return [net.space.largest() if chance < self.whole else net.sample(generator)]
