"""ProgressiveShrinking: first the whole network, then smaller kernels, fewer blocks, fewer channels."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from pliant.core import Config, Facts, Knob, Space
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.elastic.recipes._distil import Teacher
from pliant.elastic.recipes._sizes import check_count, check_share, check_spread, kind_of, near_a_size

WHOLE = "whole"
_ORDER = ((WHOLE, 0.15), ("kernel", 0.1), ("depth", 0.1), ("width", 0.65))
"""The last phase is the longest: under one falling learning rate, small networks would else hardly be trained."""
_SIZES = ("resolution", "length")
"""Kinds that are about the input: they bend in every phase."""


@final
@dataclass(frozen=True)
class ProgressiveShrinking(ElasticRecipe):
    """Phases that open smaller and smaller choices, taught by the whole network.

    Progressive shrinking of "Once-for-All: Train One Network and Specialize it for Efficient Deployment" (Cai et al.
    2019, section 3.3): the whole network first, then, one after another and each on top of those before, kernel sizes
    (through the transform matrices of the kernel knobs), depths and widths. In a phase choices open from the largest
    down during its first half; blocks close from the last of each stage on. Input sizes bend from the start. What is
    drawn from the open choices learns from the labels and from the whole network.

    It has a schedule: in a loop of your own, `recipe.at(done / steps).step(...)`; `pliant.train` does so.

    Args:
        phases: their order and shares of the training: `whole`, `kernel`, `depth` (blocks, too) and `width` (all
            other units: heads, experts, ...). Those for which a network has no knobs are left out, and the shares of
            the rest scaled to one; knobs whose phase is not named stay whole.
        whole: share of the steps after the first phase that run the whole network, so that it stays a good teacher.
        subnets: how many sub-networks a step draws.
        labels: share of the labels in the loss of a drawn sub-network, in [0, 1]; the rest is the teacher's.
        spread: how far knobs stray from a drawn size, as for `Nested`.
        teacher: a trained network that stays as it is, such as a copy of the whole one; leave the phase `whole` out
            then. None: the whole network itself, as it is at each step.

    Raises:
        ValueError: an unknown phase or one named twice, a share that is not positive, or an argument out of its range;
            in a step: nobody has said how far the training is.
        TypeError: a teacher that is no module.
    """

    phases: tuple[tuple[str, float], ...] = _ORDER
    whole: float = 0.1
    subnets: int = 1
    labels: float = 0.5
    spread: float = 0.2
    teacher: Teacher | nn.Module | None = None
    facts: ClassVar[Facts] = Facts(
        title="Once-for-All: Train One Network and Specialize it for Efficient Deployment",
        year=2019,
        room="elastic",
        rows=("093",),
        needs=("data", "labels"),
        laws=("slices_only", "deterministic"),
        deviations=(
            "Without `teacher` the whole network teaches as it is at each step, not as it was before it shrank; a "
            "share of the steps goes on training it.",
            "A size is drawn first for each kind of knob, then every knob near it.",
            "All phases are parts of one training with one learning-rate schedule, the first ones short.",
            "Units are not sorted by their importance before widths open; `sort_units` does so before a training.",
            "One sub-network a step in every phase by default; the paper draws up to four.",
        ),
    )

    def __post_init__(self) -> None:
        allowed = [name for name, _ in _ORDER]
        names = [name for name, _ in self.phases]
        if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
            raise ValueError(f"phases must be different ones of {', '.join(allowed)}, got {names}")
        for name, share in self.phases:
            if not share > 0:
                raise ValueError(f"the share of phase {name!r} must be positive, got {share}")
        if WHOLE in names[1:]:
            raise ValueError(f"the phase {WHOLE!r} comes first, got {names}")
        check_share("whole", self.whole)
        check_share("labels", self.labels)
        check_count("subnets", self.subnets)
        check_spread(self.spread)
        if self.teacher is not None and not isinstance(self.teacher, Teacher):
            object.__setattr__(self, "teacher", Teacher(self.teacher))

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """Configs from the open choices; in the first phase, and with probability `whole` later on, all of the network.

        Input sizes bend in both.
        """
        space = self.open(net.space)
        whole = [knob for knob in space if knob.kind in _SIZES]
        found = []
        for _ in range(self.subnets):
            shrinks = float(torch.rand((), generator=generator)) >= self.whole and self._place(net.space)[0] != WHOLE
            knobs = list(space) if shrinks else whole
            found.append(space.largest().replace(near_a_size(knobs, generator, spread=self.spread)))
        return found

    def labels_of(self, net: Elastic, config: Config) -> float:
        """All in the first phase, where nobody can teach yet, later `labels`."""
        return 1.0 if self._place(net.space)[0] == WHOLE else self.labels

    def open(self, space: Space) -> Space:
        """What can be drawn at this point of the training; closed knobs have their largest choice alone.

        Raises:
            ValueError: nobody has said how far the training is.
        """
        now, inside = self._place(space)
        order = [name for name, _ in self._present(space)]
        ranks, levels = _ranks(space), _levels(space)
        knobs = []
        for knob in space:
            phase = _phase(knob)
            if knob.kind in _SIZES:
                opened = len(knob.choices)
            elif phase not in order or order.index(phase) > order.index(now):
                opened = 0
            elif phase == now:  # all are open from the middle of the phase on
                opened = 1 + int(2 * inside * levels[phase])
            else:
                opened = levels[phase]
            opened = max(opened - ranks.get(knob.name, 0), 0)
            knobs.append(Knob(knob.name, knob.choices[-1 - opened :] if opened < len(knob.choices) else knob.choices))
        return Space(knobs)

    def _present(self, space: Space) -> list[tuple[str, float]]:
        """The phases that a network goes through."""
        there = {_phase(knob) for knob in space} | {WHOLE}
        return [(name, share) for name, share in self.phases if name in there] or [(WHOLE, 1.0)]

    def _place(self, space: Space) -> tuple[str, float]:
        """The phase, and how far it is, in [0, 1]."""
        if self.progress is None:
            raise ValueError("ProgressiveShrinking has a schedule; say where it is: recipe.at(done / steps).step(...)")
        phases = self._present(space)
        left = self.progress * sum(share for _, share in phases)
        for name, share in phases[:-1]:
            if left < share:
                return name, left / share
            left -= share
        name, share = phases[-1]
        return name, min(left / share, 1.0)


def _phase(knob: Knob) -> str:
    """The phase that opens a knob."""
    kind = kind_of(knob)
    return kind if kind in ("kernel", "depth", *_SIZES) else "width"


def _ranks(space: Space) -> dict[str, int]:
    """For each depth knob how many of its stage close before it: the last block closes first."""
    stages: dict[str, list[str]] = {}
    for knob in space:
        if _phase(knob) == "depth":
            stages.setdefault(knob.name.rpartition(".")[0], []).append(knob.name)
    return {name: rank for names in stages.values() for rank, name in enumerate(reversed(names))}


def _levels(space: Space) -> dict[str, int]:
    """How many openings a phase has."""
    ranks, found = _ranks(space), dict[str, int]()
    for knob in space:
        levels = len(knob.choices) - 1 + ranks.get(knob.name, 0)
        found[_phase(knob)] = max(found.get(_phase(knob), 0), levels)
    return found
