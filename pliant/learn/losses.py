"""Losses of a network's output and the targets, and the choice of one by name."""

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.core import main_output, resolve
from pliant.learn.recipe import LossFn

__all__ = ["cross_entropy", "mse", "next_token"]


def cross_entropy(output: Any, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        output: logits, classes on axis 1 as in torch ([N, C], [N, C, ...]); also [N, T, C] where `targets` is [N, T].
        targets: class numbers int64 (-100 is left out), or class probabilities of the shape of the logits.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).

    Raises:
        ValueError: shapes that fit neither reading, or `label_smoothing` outside [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    logits, targets = classes_second(main_output(output), targets)
    return _cross_entropy(logits, targets, label_smoothing=label_smoothing)


def mse(output: Any, targets: Tensor) -> Tensor:
    """Mean squared error over all elements; an axis of length 1 more or less, as in [N, 1] and [N], is no difference.

    Raises:
        ValueError: output and targets of other shapes (nothing is broadcast).
    """
    values, targets = same_shape(main_output(output), targets)
    return F.mse_loss(_float(values), targets.to(torch.float32))


def next_token(output: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token.

    Args:
        output: logits [N, T, V], the vocabulary last.
        targets: the tokens that follow, int64 [N, T] (-100 is left out).

    Raises:
        ValueError: shapes that do not fit.
    """
    logits, targets = vocabulary_last(main_output(output), targets)
    return _cross_entropy(logits, targets)


def _cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    try:
        return F.cross_entropy(_float(logits), targets, label_smoothing=label_smoothing)
    except IndexError as error:
        raise ValueError(
            f"the network has {logits.shape[1]} outputs, but a label is {int(targets.max())}: give it more outputs"
        ) from error


def _float(values: Tensor) -> Tensor:
    # Under autocast the output is bfloat16: losses are summed in float32 all the same.
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _misfit(logits: Tensor, targets: Tensor, wanted: str) -> ValueError:
    return ValueError(f"output {tuple(logits.shape)} and targets {tuple(targets.shape)} do not fit; wanted {wanted}")


def classes_second(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with the classes on axis 1 and the targets that fit them.

    Raises:
        ValueError: shapes that do not fit, or that fit with the classes on axis 1 and last.
    """
    if logits.dim() >= 2:
        if targets.is_floating_point() and targets.shape == logits.shape:
            return logits, targets
        second, last = targets.shape == logits.shape[:1] + logits.shape[2:], targets.shape == logits.shape[:-1]
        if second and last and logits.dim() > 2:
            problem = f"output {tuple(logits.shape)} may have its classes on axis 1 or last"
            raise ValueError(f"{problem}; name the loss `next_token`, or the metric `next_token_accuracy`")
        if second:
            return logits, targets.long()
        if last:
            return logits.movedim(-1, 1), targets.long()
    raise _misfit(logits, targets, "[N, C] and [N], [N, C, ...] and [N, ...], or [N, T, C] and [N, T]")


def vocabulary_last(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N*T, V] and targets [N*T]. Raises `ValueError` for shapes that do not fit."""
    if logits.dim() < 2 or targets.shape != logits.shape[:-1]:
        raise _misfit(logits, targets, "[N, T, V] and [N, T]")
    return logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long()


def same_shape(values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one shape, axes of length 1 apart. Raises `ValueError` where they differ otherwise."""
    if values.shape == targets.shape:
        return values, targets
    if [n for n in values.shape if n != 1] == [n for n in targets.shape if n != 1]:
        return values.reshape(targets.shape), targets
    raise _misfit(values, targets, "the same shape")


def loss_function(loss: str | Callable[..., Tensor], output: str | None = None) -> LossFn:
    """The `loss_fn(output, targets)` a recipe is given.

    Args:
        loss: a name (`cross_entropy`, `mse`, `next_token`) or a callable of output and targets that returns a scalar.
        output: which field or key of the network's output the loss reads. With None a named loss finds the logits by
            itself, and a callable is given the output as the network returned it.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor callable.
    """
    if isinstance(loss, str):
        chosen = cast(LossFn, resolve(sys.modules[__name__], loss, what="loss"))
    elif callable(loss):
        chosen = loss
    else:
        raise TypeError(f"loss must be a name or a callable, got {type(loss).__name__}")
    if output is None:
        return chosen
    return lambda result, targets: chosen(main_output(result, output), targets)
