"""Distillation: the loss of an output against a teacher's, and a teacher that stays as it is."""

import functools
import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import call, tensors_of
from pliant.learn import LossFn, cross_entropy, device_of, next_token
from pliant.learn.losses import classes_second, vocabulary_last


def soft_loss(output: Tensor, teacher: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """How far an output is from that of a teacher, by the task.

    For classes the mean cross-entropy in nats to the teacher's probabilities (temperature 1), without what the targets
    leave out (-100); for everything else the mean squared error. Classes are told by targets that are whole numbers and
    have one axis less, or by the loss `cross_entropy`.

    Args:
        output: of the one that learns, float.
        teacher: of the teacher, of the same shape, without a gradient.
        targets: the labels of the batch.
        loss_fn: the loss of the labels.

    Raises:
        ValueError: outputs of two shapes, or logits and targets that do not fit.
    """
    if output.shape != teacher.shape:
        shapes = f"{tuple(output.shape)} for the teacher's {tuple(teacher.shape)}"
        raise ValueError(f"a teacher's output must have the shape of the sub-network's, got {shapes}")
    output, teacher = output.float(), teacher.float()
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    whole = not targets.is_floating_point() and targets.dim() == output.dim() - 1
    if not whole and loss_fn is not cross_entropy:
        return F.mse_loss(output, teacher)
    if loss_fn is next_token:
        (output, labels), (teacher, _) = vocabulary_last(output, targets), vocabulary_last(teacher, targets)
    else:
        (output, labels), (teacher, _) = classes_second(output, targets), classes_second(teacher, targets)
    losses = -(teacher.softmax(1) * output.log_softmax(1)).sum(1)
    return losses[labels != -100].mean() if whole else losses.mean()


class Teacher:
    """A trained network that only teaches: in eval mode, without gradients, never changed but for its device.

    Its `repr` holds a fingerprint of its weights, so that a run folder can tell one teacher from another.

    Raises:
        TypeError: no module.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"teacher must be a trained nn.Module or None, got {type(module).__name__}")
        self.module = module
        digest = hashlib.sha256()
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self._text = f"{type(module).__name__}({digest.hexdigest()[:16]})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What it makes of a batch."""
        there = next((tensor.device for tensor in tensors_of([*args, kwargs])), torch.device("cpu"))
        if device_of(self.module) != there:
            self.module.to(there)
        if any(module.training for module in self.module.modules()):
            self.module.eval()
        with torch.no_grad():
            return call(self.module, args) if args else call(self.module, kwargs)

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Teacher) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)
