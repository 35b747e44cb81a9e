"""What a trained network is measured by: sums over batches, and which direction is better."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.core import resolve
from pliant.learn.losses import classes_second, same_shape, vocabulary_last

__all__ = ["accuracy", "mse", "next_token_accuracy", "next_token_loss", "perplexity", "rmse"]


def _same(value: float) -> float:
    return value


@dataclass(frozen=True)
class Measure:
    """A figure that is a mean over samples, or a function of one.

    Args:
        name: its name in results.
        higher_is_better: its direction.
        add: output and targets of one batch -> (their sum, how many terms it has).
        finish: mean of all terms -> the figure.
    """

    name: str
    higher_is_better: bool
    add: Callable[[Tensor, Tensor], tuple[float, int]]
    finish: Callable[[float], float] = _same


_IGNORED = -100  # torch's own mark for a target that does not count


def correct(output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets are hit, and which count: bool tensors of the shape of `targets`."""
    logits, targets = classes_second(output, targets)
    if targets.is_floating_point():
        targets = targets.argmax(1)
    return logits.argmax(1) == targets, targets != _IGNORED


def _count(hits: Tensor, counts: Tensor) -> tuple[float, int]:
    return float((hits & counts).sum()), int(counts.sum())


def _accuracy(output: Tensor, targets: Tensor) -> tuple[float, int]:
    return _count(*correct(output, targets))


def _squares(output: Tensor, targets: Tensor) -> tuple[float, int]:
    values, targets = same_shape(output, targets)
    return float((values.double() - targets.double()).square().sum()), targets.numel()


def _token_nats(output: Tensor, targets: Tensor) -> tuple[float, int]:
    logits, targets = vocabulary_last(output, targets)
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return float(total), int((targets != _IGNORED).sum())


def _token_hits(output: Tensor, targets: Tensor) -> tuple[float, int]:
    logits, targets = vocabulary_last(output, targets)
    return _count(logits.argmax(1) == targets, targets != _IGNORED)


accuracy = Measure("accuracy", True, _accuracy)
"""Share of right classes, 0..1; for dense tasks of right positions."""

mse = Measure("mse", False, _squares)
"""Mean squared error, in squared units of the target."""

rmse = Measure("rmse", False, _squares, math.sqrt)
"""Root of the mean squared error, in units of the target."""

next_token_loss = Measure("next_token_loss", False, _token_nats)
"""Mean cross-entropy of the next token, in nats."""

perplexity = Measure("perplexity", False, _token_nats, math.exp)
"""`e` to the mean cross-entropy of the next token: between how many tokens the network wavers, from 1 on."""

next_token_accuracy = Measure("next_token_accuracy", True, _token_hits)
"""Share of next tokens that are the likeliest by the network, 0..1."""

_ALSO = {"loss": "next_token_loss", "nats": "next_token_loss", "next_token": "next_token_loss"}


def measure(metric: Any) -> Measure:
    """The measure meant by a name, by an object with a `name` (such as `Dataset.metric`), or by itself.

    A function of output and targets that returns a number per batch becomes the mean over samples, smaller is better.

    Raises:
        ValueError: an unknown name.
        TypeError: none of these.
    """
    if isinstance(metric, Measure):
        return metric
    name = metric if isinstance(metric, str) else getattr(metric, "name", None)
    if isinstance(name, str):
        return cast(Measure, resolve(sys.modules[__name__], _ALSO.get(name, name), what="metric"))
    if callable(metric):
        return Measure(
            getattr(metric, "__name__", type(metric).__name__),
            False,
            lambda output, targets: (float(metric(output, targets)) * len(targets), len(targets)),
        )
    raise TypeError(f"a metric is a name, a Measure or a function of output and targets, got {type(metric).__name__}")


def of_task(task: str, metric: Any) -> Measure:
    """The measure of a data set's metric: the accuracy of `next_token` tasks is that of tokens."""
    chosen = measure(metric)
    return next_token_accuracy if task == "next_token" and chosen is accuracy else chosen


def usual(targets: Tensor) -> Measure:
    """The metric of targets that name none: `accuracy` for whole numbers, `mse` for floats."""
    return mse if torch.is_floating_point(targets) else accuracy
