"""Objectives judged on the validation split: a metric, and the same metric on disturbed inputs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import call, main_output, map_tensors, seeded, tensors_of
from pliant.data import Split
from pliant.learn import device_of, evaluate, losses, metrics
from pliant.search.context import Candidate, Context, Gauge, Reading
from pliant.search.front import Axis

_KINDS = ("noise", "fgsm", "pgd")


class Quality(Gauge):
    """A metric of the calibrated sub-network on the validation split.

    Args:
        name: the objective that was asked for.
        metric: as `pliant.learn.evaluate` takes it.
        context: what it reads from.

    Raises:
        ValueError: there is no data.
    """

    def __init__(self, name: str, metric: Any, context: Context) -> None:
        if context.val is None:
            raise ValueError(f"objective {name!r} needs data: pass data=")
        self._asked = name, metric
        self._val = context.val
        self._measure = metrics.measure(metric)
        super().__init__(Axis(self._measure.name, self._measure.higher_is_better, "", name), context)

    def read(self, candidate: Candidate) -> Reading:
        """Evaluate."""
        return self._judge(candidate.module, self._val)

    def within(self, context: Context) -> "Quality":
        """The same metric on other data."""
        return Quality(*self._asked, context)

    def depends(self) -> dict[str, Any]:
        """The samples, and which output is judged."""
        return {"data": self.context.data_digest, "output": self.context.output}

    def _judge(self, module: nn.Module, split: Split) -> Reading:
        size, output = self.context.batch_size, self.context.output
        return Reading(evaluate(module, split, metric=self._measure, batch_size=size, output=output))


@dataclass(frozen=True)
class Robustness:
    """The task's metric on validation inputs that are disturbed, by chance or by an attack.

    Args:
        by: "noise": Gaussian, the same for every sub-network. "fgsm": one step of `size` along the sign of the loss's
            gradient (Goodfellow, Shlens & Szegedy 2015, "Explaining and Harnessing Adversarial Examples"
            <https://arxiv.org/abs/1412.6572>, section 4), made for each sub-network anew. "pgd": `steps` smaller ones,
            each brought back to within `size` (Madry et al. 2018, "Towards Deep Learning Models Resistant to
            Adversarial Attacks" <https://arxiv.org/abs/1706.06083>, section 2.1, without random starts).
        size: standard deviation of the noise, or largest change of a number, in standard deviations of the inputs.
        steps: of "pgd", each 2.5 / steps of `size` long.

    Raises:
        ValueError: an unknown word, a size that is not above 0, or no steps.
    """

    by: str = "noise"
    size: float = 0.3
    steps: int = 7

    def __post_init__(self) -> None:
        if self.by not in _KINDS:
            raise ValueError(f"by must be one of {', '.join(_KINDS)}, got {self.by!r}")
        if not 0 < self.size < float("inf"):
            raise ValueError(f"size must be above 0, got {self.size}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def gauge(self, context: Context) -> Gauge:
        """What reads it.

        Raises:
            ValueError: there is no data, or an input has no real numbers that could be disturbed.
        """
        return _Robust(self, context)


class _Robust(Quality):
    def __init__(self, model: Robustness, context: Context) -> None:
        super().__init__("robustness", context.metric, context)
        self._model = model
        kinds = {tensor.dtype for tensor in tensors_of(self._val.inputs) if not tensor.is_floating_point()}
        if kinds:
            told = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise ValueError(f"robustness disturbs real numbers, the inputs hold {told}; give an Objective of your own")
        self.axis = Axis(f"robust_{self.axis.key}", self.axis.maximise, "", "robustness")

    def within(self, context: Context) -> Quality:
        return _Robust(self._model, context)

    def depends(self) -> dict[str, Any]:
        return super().depends() | asdict(self._model) | {"seed": self.context.seed}

    def read(self, candidate: Candidate) -> Reading:
        if self._model.by == "noise":
            return self._judge(candidate.module, self._noisy)
        parts = [self._attacked(candidate.module, *batch) for batch in self._val.batches(self.context.batch_size)]
        whole = [torch.cat(column) for column in zip(*map(tensors_of, parts), strict=True)]
        return self._judge(candidate.module, Split(_like(self._val.inputs, whole), self._val.targets))

    @cached_property
    def _noisy(self) -> Split:
        generator = seeded(self.context.seed, "robustness")
        sizes = iter(self._sizes)

        def disturbed(tensor: Tensor) -> Tensor:
            return tensor + next(sizes) * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

        return Split(map_tensors(disturbed, self._val.inputs), self._val.targets)

    @cached_property
    def _sizes(self) -> list[float]:
        """Of the disturbance of each tensor of the inputs."""
        return [self._model.size * float(tensor.std()) for tensor in tensors_of(self._val.inputs)]

    def _attacked(self, module: nn.Module, inputs: Any, targets: Tensor) -> Any:
        """A batch of inputs, moved to where the loss is larger."""
        steps = self._model.steps if self._model.by == "pgd" else 1
        clean = moved = tensors_of(inputs)
        for _ in range(steps):
            slopes = self._slopes(module, inputs, moved, targets)
            moved = [
                start + (now + 2.5 / steps * size * slope.sign() - start).clamp(-size, size)
                for start, now, slope, size in zip(clean, moved, slopes, self._sizes, strict=True)
            ]
        return _like(inputs, moved)

    def _slopes(self, module: nn.Module, inputs: Any, moved: list[Tensor], targets: Tensor) -> list[Tensor]:
        """Gradients of the loss by the inputs, where these are; those of weights are left alone."""
        leaves, there = [tensor.detach().requires_grad_() for tensor in moved], device_of(module)
        with torch.enable_grad():
            result = call(module, _like(inputs, [leaf.to(there) for leaf in leaves]))
            loss: Callable[..., Tensor] = losses.mse if targets.is_floating_point() else losses.cross_entropy
            found = loss(main_output(result, self.context.output), targets.to(there))
            return list(torch.autograd.grad(found, leaves))


def _like(inputs: Any, tensors: list[Tensor]) -> Any:
    """The structure of `inputs` with other tensors, in the order of `tensors_of`."""
    left = iter(tensors)
    return map_tensors(lambda _: next(left), inputs)
