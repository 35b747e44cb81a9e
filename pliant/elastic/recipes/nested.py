"""Nested: one random sub-network a step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.core import Config, Facts, Knob
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

    A draw first picks a size for each kind of knob (widths, heads, depths), uniformly, and then every knob near it:
    drawn one by one, a dozen knobs would nearly always make a middling network, and the small ones on every front
    would hardly be trained.

    Args:
        whole: share of steps that run the widest network instead of a drawn one. The widest network is one of very
            many, so under any draw it would hardly ever be trained as such.
        spread: how far knobs stray from the drawn size: standard deviation, as a share of a knob's range; what would
            leave the range stops at its end. 0 keeps all knobs of a kind alike.

    Raises:
        ValueError: `whole` is outside [0, 1], or `spread` is negative.
    """

    whole: float = 0.25
    spread: float = 0.2
    facts: ClassVar[Facts] = Facts(
        title="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for "
        "Training Many-in-One Neural Networks",
        year=2023,
        room="elastic",
        rows=("010",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=(
            "A share of the steps always runs the widest network.",
            "A size is drawn first for each kind of knob, then every knob near it.",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole must be in [0, 1], got {self.whole}")
        if not self.spread >= 0:
            raise ValueError(f"spread must not be negative, got {self.spread}")

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """One config: the widest with probability `whole`, else one near a drawn size."""
        chance = float(torch.rand((), generator=generator))
        if chance < self.whole:
            return [net.space.largest()]
        kinds = sorted({_kind(knob) for knob in net.space})
        sizes = dict(zip(kinds, torch.rand(len(kinds), generator=generator).tolist(), strict=True))
        strays = (self.spread * torch.randn(len(net.space), generator=generator)).tolist()
        values = {}
        for knob, stray in zip(net.space, strays, strict=True):
            place = min(max(sizes[_kind(knob)] + stray, 0.0), 1.0 - 1e-9)
            values[knob.name] = knob.choices[int(place * len(knob.choices))]
        return [Config(values)]


def _kind(knob: Knob) -> str:
    """Blocks that can be skipped are depth, too."""
    return "depth" if knob.kind == "block" else knob.kind
