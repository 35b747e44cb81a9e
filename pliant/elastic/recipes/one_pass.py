"""AllWidths: one step of a one-pass network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from pliant.core import Facts, call, map_tensors, tensors_of
from pliant.elastic.onepass.network import OnePass
from pliant.learn import Batch, LossFn, Recipe


@final
@dataclass(frozen=True)
class AllWidths(Recipe):
    """All widths of a one-pass network on the labels, in one forward and backward pass.

    The loss is the plain mean over widths: more weight on the widest gains it little and costs the narrow ones much.
    """

    facts: ClassVar[Facts] = Facts(
        title="One pass: all widths of a block-triangular network in one forward",
        year=2026,
        room="elastic",
        needs=("data", "labels"),
        laws=("deterministic", "prefix_equals_column"),
        deviations=("The widest network is not the original: what a shell reads from later ones is left out.",),
    )

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean loss over all widths.

        Raises:
            TypeError: `net` is no one-pass network.
        """
        family = as_one_pass(net)
        inputs, targets = batch
        output = call(family, inputs)
        return torch.stack([loss_fn(row, targets) for row in columns(output, family.widths)]).mean()

    def measured(self, net: nn.Module, inputs: Iterable[Any]) -> nn.Module:
        """The widest network; its batch statistics are right as they are."""
        family = as_one_pass(net)
        return family.at(family.widths)


def columns(output: Any, widths: int) -> list[Any]:
    """What every width gave, from what all gave together."""
    unbound = {id(tensor): tensor.unbind(0) for tensor in tensors_of(output)}

    def row(k: int) -> Any:
        return map_tensors(lambda tensor: unbound[id(tensor)][k], output)

    return [row(k) for k in range(widths)]


def as_one_pass(net: nn.Module) -> OnePass:
    """`net`, if it is a one-pass network. Raises `TypeError` otherwise."""
    if not isinstance(net, OnePass):
        raise TypeError(
            f"this recipe trains a one-pass network, got {type(net).__name__}; make it with pliant.one_pass"
        )
    return net
