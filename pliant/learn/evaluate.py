"""Measuring a network on a split of data: eval mode, no gradients, nothing changed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import call, main_output, map_tensors
from pliant.data import Dataset, Split
from pliant.learn import metrics
from pliant.learn.metrics import Measure
from pliant.learn.modes import in_mode, on_device


def _check(split: Split, batch_size: int) -> None:
    if isinstance(split, Dataset):
        raise TypeError("got a whole Dataset; give one of its splits, such as data.val")
    if batch_size <= 0:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if len(split) == 0:
        raise ValueError("the split holds no samples")


def _for_each(
    each: Callable[[Tensor, Tensor], None],
    net: nn.Module,
    split: Split,
    batch_size: int,
    output: str | None,
    device: str | torch.device | None,
) -> None:
    """Hand the output and the targets of every batch to `each`, both on the device of the network."""
    # A callback, not a generator: a suspended generator would leave the caller in eval mode and without gradients.
    with in_mode(net, False), on_device(net, device) as there, torch.no_grad():
        for inputs, targets in split.batches(batch_size):
            moved = map_tensors(lambda tensor: tensor.to(there), inputs)
            each(main_output(call(net, moved), output), targets.to(there))


def evaluate(
    net: nn.Module,
    split: Split,
    *,
    metric: str | Measure | Callable[[Tensor, Tensor], Any] | None = None,
    batch_size: int = 512,
    output: str | None = None,
    device: str | torch.device | None = None,
) -> float:
    """One figure of a network on a split.

    Args:
        net: the network; its mode and device are given back as they were.
        split: what to measure on, such as `data.val`.
        metric: `accuracy`, `mse`, `rmse`, `next_token_loss` (nats), `next_token_accuracy`, `Dataset.metric`, a
            `Measure`, or a function of output and targets. None: accuracy for whole targets, mse for floats.
        batch_size: samples per forward pass.
        output: which field or key of the network's output is measured.
        device: where to run; None is where the network is.

    Raises:
        ValueError: an empty split, `batch_size` <= 0, an unknown metric, or shapes that do not fit.
        TypeError: `split` is a whole Dataset.
    """
    _check(split, batch_size)
    chosen = metrics.usual(split.targets) if metric is None else metrics.measure(metric)
    total, count = 0.0, 0

    def add(result: Tensor, targets: Tensor) -> None:
        nonlocal total, count
        more, terms = chosen.add(result, targets)
        total, count = total + more, count + terms

    _for_each(add, net, split, batch_size, output, device)
    if count == 0:
        raise ValueError(f"no target of the split counts for {chosen.name}")
    return chosen.finish(total / count)


def per_class(
    net: nn.Module,
    split: Split,
    *,
    classes: Sequence[str],
    batch_size: int = 512,
    output: str | None = None,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Accuracy within each true class, 0..1, in the order of `classes`. Classes without a sample are left out.

    Raises:
        ValueError: as `evaluate`; or a target that is no index into `classes`.
    """
    _check(split, batch_size)
    hits, seen = torch.zeros(2, len(classes), dtype=torch.int64)

    def add(result: Tensor, targets: Tensor) -> None:
        right, counts = metrics.correct(result, targets)
        truth = (targets.argmax(1) if targets.is_floating_point() else targets)[counts].cpu()
        if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < len(classes):
            raise ValueError(f"targets run from {int(truth.min())} to {int(truth.max())}, got {len(classes)} classes")
        seen.add_(torch.bincount(truth, minlength=len(classes)))
        hits.add_(torch.bincount(truth[right[counts].cpu()], minlength=len(classes)))

    _for_each(add, net, split, batch_size, output, device)
    return {name: float(hits[i] / seen[i]) for i, name in enumerate(classes) if seen[i]}


def predict(
    net: nn.Module,
    split: Split,
    *,
    batch_size: int = 512,
    output: str | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """The network's outputs for every sample of a split, in order: [N, ...] on the CPU.

    Raises:
        ValueError: as `evaluate`.
    """
    _check(split, batch_size)
    results: list[Tensor] = []
    _for_each(lambda result, _: results.append(result.cpu()), net, split, batch_size, output, device)
    return torch.cat(results)
