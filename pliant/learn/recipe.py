"""Recipe: what one training step does."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from pliant.core import call

LossFn = Callable[[Any, Tensor], Tensor]
"""`loss_fn(output, targets) -> scalar`, where `output` is whatever the network returned."""

Batch = tuple[Any, Tensor]
"""Inputs (a tensor, a tuple or a dict, axis 0 = samples) and targets."""


class Recipe(ABC):
    """How a network is trained, step by step. A frozen dataclass: its `repr` names it in the run folder.

    Every subclass is either abstract or final. A recipe works in any loop of the user's own:

        loss = recipe.step(net, (inputs, targets), loss_fn, generator=generator)
        loss.backward()
        recipe.update(net, optimizer)
        optimizer.zero_grad()

    One with a schedule also has to know how far the training is: `recipe.at(done / steps).step(...)`.

    Attributes:
        batch_size: samples a step that it works best with; `train` takes them where the settings name none.
    """

    batch_size: ClassVar[int] = 128

    def at(self, progress: float) -> "Recipe":
        """The recipe at a point of the training. The default is the same one throughout.

        It holds nothing but that point, so a training that goes on from a checkpoint goes on with the same steps.

        Args:
            progress: steps done as a share of all, in [0, 1].
        """
        return self

    @abstractmethod
    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of one batch: a differentiable scalar; the caller calls `.backward()`.

        Args:
            net: the network in train mode; on return it runs the same sub-network as before.
            batch: inputs and targets.
            loss_fn: the task's loss of an output and the targets.
            generator: where random choices come from (a CPU generator); None takes torch's global one.
        """

    def update(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Move the parameters after one or more backward passes. The default is `optimizer.step()`."""
        optimizer.step()

    def measured(self, net: nn.Module, inputs: Iterable[Any]) -> nn.Module:
        """The network whose accuracy stands for the training after each epoch: `net` itself by default.

        Args:
            net: the network being trained. It must not be changed.
            inputs: a few batches of training inputs, for recipes that re-estimate BatchNorm first. Read on demand.
        """
        return net


@runtime_checkable
class HasRecipe(Protocol):
    """A network that knows how it wants to be trained."""

    def default_recipe(self) -> Recipe:
        """The recipe `train` takes when the caller names none."""
        ...


@runtime_checkable
class Remembers(HasRecipe, Protocol):
    """A family that keeps some training inputs, to estimate BatchNorm statistics from them later on."""

    def remember(self, batches: Iterable[Any]) -> None:
        """Keep as many of these inputs as it needs; they are read on demand."""
        ...


@final
@dataclass(frozen=True)
class Plain(Recipe):
    """One forward pass of the network as it is: ordinary training, fine-tuning, separate training."""

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """`loss_fn(net(inputs), targets)`."""
        inputs, targets = batch
        return loss_fn(call(net, inputs), targets)
