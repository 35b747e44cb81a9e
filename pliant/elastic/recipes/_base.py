"""What the recipes for elastic networks share."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import Config, call
from pliant.elastic.elastic import Elastic
from pliant.learn import Batch, LossFn, Recipe, step_slices


class ElasticRecipe(Recipe):
    """One step averages the label losses of some sub-networks on the batch; the update moves only their slices."""

    @abstractmethod
    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """The sub-networks of this step."""

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean loss over the drawn sub-networks; `net` runs the same sub-network afterwards as before.

        Raises:
            TypeError: `net` is not elastic.
        """
        family = as_elastic(net)
        inputs, targets = batch
        losses = []
        for config in self.draw(family, generator or torch.default_generator):
            with family.using(config):
                losses.append(loss_fn(call(family, inputs), targets))
        return torch.stack(losses).mean()

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
