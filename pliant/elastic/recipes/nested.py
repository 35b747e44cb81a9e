"""Nested: one random sub-network a step."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from pliant.core import Config, Facts, Knob
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.elastic.recipes._sizes import check_count, check_lean, check_share, check_spread, near_a_size
from pliant.graph.inner import fits


@final
@dataclass(frozen=True)
class Nested(ElasticRecipe):
    """One random nested sub-network a step, trained on the labels.

    The cheapest recipe: a step costs what the drawn sub-network costs, about half the widest one. So a family can
    have more epochs than the largest network alone for little more of its cost (the row `train-once` measures it). The
    random, sorted, one-sub-network-at-a-time form of "SortedNet, a Place for Every Network and Every Network in its
    Place" (Valipour et al. 2023, algorithm 1). Nothing has to be searched afterwards: for a size, take
    `space.uniform(share)`.

    A draw first picks a size for each kind of knob (widths, heads) and then every knob near it: drawn one by one, a
    dozen knobs would nearly always make a middling network, and the small ones on every front would hardly be trained.
    Small sizes are drawn more often (`lean`): they need more steps to come as near to a network that is trained alone,
    and their steps are cheap. Blocks are kept with a probability between one half and one, so networks of hardly any
    block are trained least. With one sub-network a step, small batches (32 to 64 samples) give more sub-networks for
    the same cost, and better ones.

    Args:
        first: share of the training in which the widest network runs alone, before any other. What it has learnt then
            serves all others, and it comes nearer to a network that is trained alone. Takes effect where the recipe
            knows how far the training is (`train` says so; in a loop of your own, `recipe.at(...)` does).
        whole: share of the later draws that are the widest network. It is one of very many, so under any draw it would
            hardly ever be trained as such.
        smallest: share of the other draws in which every width is the smallest, for the same reason.
        lean: sizes are uniform random numbers in [0, 1] to this power; 1 draws all alike, larger powers small ones more
            often.
        spread: how far knobs stray from the drawn size: standard deviation, as a share of a knob's range; what would
            leave the range stops at its end. 0 keeps all knobs of a kind alike.
        subnets: how many sub-networks a step draws; the gradients of their losses on the same batch are accumulated
            (averaged) before the update, the paper's g_acc. `Settings(accumulate=...)` takes a new batch for each.
        knobs: patterns of the knobs that are drawn, such as `("width:*",)`; all others stay whole.

    Raises:
        ValueError: `first`, `whole` or `smallest` is outside [0, 1], `lean` is not positive, `spread` is negative, or
            `subnets` < 1; in a step: a pattern that fits no knob of the network.
    """

    first: float = 0.15
    whole: float = 0.1
    smallest: float = 0.2
    lean: float = 1.5
    spread: float = 0.2
    subnets: int = 1
    knobs: tuple[str, ...] = ("*",)
    batch_size: ClassVar[int] = 32
    facts: ClassVar[Facts] = Facts(
        title="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for "
        "Training Many-in-One Neural Networks",
        year=2023,
        room="elastic",
        rows=("010",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=(
            "The widest network begins alone; later on a share of the draws is the widest, another the narrowest.",
            "A size is drawn first for each kind of knob, small ones more often, then every knob near it.",
        ),
    )

    def __post_init__(self) -> None:
        check_share("first", self.first)
        check_share("whole", self.whole)
        check_share("smallest", self.smallest)
        check_lean(self.lean)
        check_spread(self.spread)
        check_count("subnets", self.subnets)

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """Configs: the widest with probability `whole`, the narrowest with `smallest`, else one near a drawn size."""
        knobs = self._drawn(net)
        return [self._one(net, knobs, generator) for _ in range(self.subnets)]

    def _one(self, net: Elastic, knobs: list[Knob], generator: torch.Generator) -> Config:
        whole = net.space.largest()
        tosses = torch.rand(2, generator=generator).tolist()
        if tosses[0] < self.whole or (self.progress is not None and self.progress < self.first):
            return whole
        smallest = tosses[1] < self.smallest
        return whole.replace(near_a_size(knobs, generator, spread=self.spread, lean=self.lean, smallest=smallest))

    def _drawn(self, net: Elastic) -> list[Knob]:
        """The knobs that bend."""
        if self.knobs == ("*",):
            return list(net.space)
        for pattern in self.knobs:
            if not any(fits(knob.name, pattern) for knob in net.space):
                there = ", ".join(knob.name for knob in net.space) or "(none)"
                raise ValueError(f"knobs: {pattern!r} fits no knob of {net.name}; knobs are {there}")
        return [knob for knob in net.space if any(fits(knob.name, pattern) for pattern in self.knobs)]
