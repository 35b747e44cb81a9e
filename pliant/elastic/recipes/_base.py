"""What the recipes for elastic networks share: a step is a sampler, a loss, a schedule and a teacher."""

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pliant.core import Config, call, main_output
from pliant.elastic.elastic import Elastic
from pliant.elastic.recipes._distil import Teacher, soft_loss
from pliant.learn import Batch, LossFn, Recipe, step_slices


class ElasticRecipe(Recipe):
    """One step averages the losses of some sub-networks on the batch; the update moves only their slices.

    A leaf says which sub-networks a step runs (`draw`), how much each of them learns from the labels (`labels_of`), and
    who teaches it the rest (`teacher`). Both may depend on `progress`.

    Attributes:
        progress: how far the training is, in [0, 1]; None where nobody has said it with `at`.
        teacher: None is the widest sub-network of the same step, as it is at that moment.
    """

    progress: ClassVar[float | None] = None
    teacher: Teacher | nn.Module | None = None

    def at(self, progress: float) -> Self:
        """The recipe at a point of the training.

        Raises:
            ValueError: `progress` is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], got {progress}")
        there = copy.copy(self)
        object.__setattr__(there, "progress", float(progress))  # no field: where the training is is no setting
        return there

    @abstractmethod
    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """The sub-networks of this step."""

    def labels_of(self, net: Elastic, config: Config) -> float:
        """The share of the labels in the loss of a drawn sub-network, in [0, 1]; the rest is the teacher's. All."""
        return 1.0

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean loss over the drawn sub-networks; `net` runs the same sub-network afterwards as before.

        Raises:
            TypeError: `net` is not elastic.
            ValueError: the teacher's output has another shape than that of a sub-network.
        """
        family = as_elastic(net)
        inputs, targets = batch
        widest = family.space.largest() if self.teacher is None else None  # it never is its own pupil
        drawn = self.draw(family, generator or torch.default_generator)
        shares = [1.0 if config == widest else self.labels_of(family, config) for config in drawn]
        lessons = list(zip(drawn, shares, strict=True))
        teaches = min(shares) < 1
        if teaches:
            lessons.sort(key=lambda lesson: lesson[0] != widest)  # whoever teaches goes first
        soft: Tensor | None = None
        losses: list[Tensor] = []
        for config, share in lessons:
            if share < 1 and soft is None:
                soft = self._taught(family, inputs)
            with family.using(config):
                output = call(family, inputs)
            if soft is None or share == 1:
                losses.append(loss_fn(output, targets))
                if teaches and soft is None:
                    soft = main_output(output).detach()
            else:
                follows = soft_loss(main_output(output), soft, targets, loss_fn)
                losses.append(share * loss_fn(output, targets) + (1 - share) * follows if share > 0 else follows)
        return torch.stack(losses).mean()

    def _taught(self, net: Elastic, inputs: Any) -> Tensor:
        """What the teacher makes of the inputs, without gradients."""
        with torch.no_grad():
            if self.teacher is not None:
                return main_output(call(self.teacher, inputs))
            with net.using(net.space.largest()):
                return main_output(call(net, inputs))

    def update(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step on the slices that were used since the last one."""
        family = as_elastic(net)
        step_slices(optimizer, family.touched())
        family.clear_touched()

    def measured(self, net: nn.Module, inputs: Iterable[Any]) -> nn.Module:
        """The widest sub-network with its own BatchNorm statistics."""
        family = as_elastic(net)
        return family.extract(family.space.largest(), calibrate=inputs)


def as_elastic(net: nn.Module) -> Elastic:
    """`net`, if it is elastic. Raises `TypeError` otherwise."""
    if not isinstance(net, Elastic):
        raise TypeError(
            f"this recipe trains an elastic network, got {type(net).__name__}; make it one with pliant.elastic"
        )
    return net
