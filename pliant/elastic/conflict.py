"""Gradient conflict: whether sub-networks pull their shared weights the same way."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from pliant.core import Config, call, copied
from pliant.core.parts import part_of, put
from pliant.elastic.elastic import Elastic
from pliant.learn import Batch, LossFn


def gradient_conflict(net: Elastic, batches: Iterable[Batch], loss_fn: LossFn, configs: Sequence[Config]) -> Tensor:
    """Cosines between the gradients of sub-networks on the weights that two of them share.

    1 means that a step for one is a step for the other, 0 that they do not meet, below 0 that a step for one undoes
    some of the other's: sizes in conflict (Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", section 2.2,
    with sub-networks in place of tasks).

    Args:
        net: the family; it is not changed.
        batches: inputs and targets; gradients are those of the summed losses.
        loss_fn: the task's loss.
        configs: the sub-networks.

    Returns:
        float64 [len(configs), len(configs)], symmetric, 1 along the diagonal; NaN where two share no weight or one of
        them has no gradient there.
    """
    twin = cast(Elastic, copied(net)).train()
    known = list(batches)
    gradients, masks = [], []
    for config in configs:
        gradient, mask = _gradient(twin, known, loss_fn, config)
        gradients.append(gradient)
        masks.append(mask)
    found = torch.full((len(configs), len(configs)), float("nan"), dtype=torch.float64)
    for a in range(len(configs)):
        for b in range(a, len(configs)):
            shared = masks[a] & masks[b]
            one, other = gradients[a][shared], gradients[b][shared]
            size = float(one.norm() * other.norm())
            if size > 0:
                found[a, b] = found[b, a] = float(one @ other) / size
    return found


def _gradient(net: Elastic, batches: Sequence[Batch], loss_fn: LossFn, config: Config) -> tuple[Tensor, Tensor]:
    """The gradient of one sub-network over all parameters in a row, and which entries it uses: float64, bool [P]."""
    net.zero_grad(set_to_none=True)
    net.clear_touched()
    with net.using(config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same dropout for all
        for inputs, targets in batches:
            loss_fn(call(net, inputs), targets).backward()  # type: ignore[no-untyped-call]
    slices = net.touched()
    rows, used = [], []
    for parameter in net.parameters():
        mask = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        index = slices.get(parameter)
        if index is not None and parameter.grad is not None:
            put(mask, index, torch.ones_like(part_of(mask, index)))
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        rows.append(gradient.double().reshape(-1).cpu())
        used.append(mask.reshape(-1).cpu())
    return torch.cat(rows), torch.cat(used)
