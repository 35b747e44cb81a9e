"""Settings: everything about a training that is not the network, the data or the recipe."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.learn import schedule
from pliant.learn.callbacks import Callback
from pliant.learn.distributed import KINDS
from pliant.learn.losses import loss_function
from pliant.learn.speed import LAYOUTS, PRECISIONS, Ways, ways

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
_OPTIMIZERS = ("adamw", "sgd")
_SMALL = 1 << 14
"""Entries of a parameter, on average, under which calls cost an optimizer more than numbers."""
# What a callback, a bar or a checkpoint does moves no number, so it does not make a run another one. How many processes
# train together is kept in the run folder by itself.
_NO_NUMBERS = ("callbacks", "progress", "checkpoint_every", "keep", "distributed")


@dataclass(frozen=True)
class Settings:
    """How `train` trains.

    Args:
        optimizer: "adamw", "sgd" (momentum 0.9, Nesterov), or a function of the parameters that returns a torch
            optimizer; such an optimizer brings its own `lr` and `weight_decay`, the schedule scales what it brings.
        lr: highest learning rate.
        weight_decay: decoupled decay (adamw) or L2 (sgd) of parameters with two or more axes, so not of biases and
            norms.
        schedule: "cosine", "linear" or "constant", after the warm-up.
        warmup: share of the steps in which the rate rises, in [0, 1).
        batch_size: samples per forward pass. None: the recipe's (128, for `Nested` 32), halved (down to 8) while
            an epoch has fewer than 16 steps. A last batch of one sample is left out: BatchNorm cannot train on it.
        loss: None for that of the data's task, a name (`cross_entropy`, `mse`, `next_token`), or a function of output
            and targets.
        precision: "float32", "bfloat16" (autocast; parameters stay float32), or "auto": bfloat16 on CUDA, float32
            elsewhere. On a CPU bfloat16 adds noise and is faster only where the CPU has instructions for it
            (avx512_bf16, amx), and then for some networks only: convolutions of many channels gain, depthwise ones and
            small matrix products may take twice as long.
        layout: memory format of weights and inputs of four axes: "contiguous", "channels_last", or "auto":
            channels-last where most weights are those of 2-d convolutions, whose steps are then mostly
            faster on a CPU. The network gets its own layout back.
        compile: whether steps run through `torch.compile`. On a CPU that is hardly faster, if at all,
            takes tens of seconds at the start and a C++ compiler. Families are refused: each of their sub-networks
            would be compiled anew. Validation runs the network's own code.
        distributed: "ddp" or "fsdp2" (see `train`), "auto": as "ddp" where torch.distributed is initialised, or "off":
            every process trains by itself.
        grad_clip: largest norm of all gradients together; None does not clip.
        accumulate: batches per optimizer step; their samples weigh alike, as those of one large batch.
        output: which field or key of the network's output the loss and the metric read; `logits` are found without.
        callbacks: objects with `on_step`, `on_epoch`, `on_end` (see `Callback`).
        progress: whether a bar is drawn on stderr; None draws one when stderr is a terminal.
        checkpoint_every: a number of steps, or a `timedelta`.
        keep: how many checkpoints stay in the run folder.

    Raises:
        ValueError: a value outside of what is said above; the message has the value and what is allowed.
        TypeError: `optimizer` or `loss` neither a name nor callable.
    """

    optimizer: str | OptimizerFactory = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.05
    batch_size: int | None = None
    loss: str | Callable[..., Tensor] | None = None
    precision: str = "auto"
    grad_clip: float | None = None
    accumulate: int = 1
    output: str | None = None
    layout: str = "auto"
    compile: bool = False
    distributed: str = "auto"
    callbacks: tuple[Callback, ...] = ()
    progress: bool | None = None
    checkpoint_every: int | timedelta = timedelta(seconds=60)
    keep: int = 2

    def __post_init__(self) -> None:
        if not (callable(self.optimizer) or self.optimizer in _OPTIMIZERS):
            raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)} or a function, got {self.optimizer!r}")
        for name, allowed in (("precision", PRECISIONS), ("layout", LAYOUTS), ("distributed", KINDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("batch_size", "accumulate", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the steps in [0, 1), got {self.warmup}")
        if not isinstance(self.checkpoint_every, timedelta) and self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.checkpoint_every}")
        if self.distributed == "fsdp2" and self.layout == "channels_last":
            raise ValueError("layout must be 'auto' or 'contiguous' with distributed='fsdp2', got 'channels_last'")
        if self.distributed == "fsdp2" and self.compile:
            raise ValueError("compile must be False with distributed='fsdp2', got True")
        schedule.schedule(self.schedule, steps=1, warmup=0.0)
        if self.loss is not None:
            loss_function(self.loss)

    def rows(self, samples: int, usual: int) -> int:
        """The batch size for that many training samples.

        Args:
            samples: of the training split.
            usual: the recipe's.
        """
        size = usual
        while size > 8 and samples < 16 * size:
            size //= 2
        return size if self.batch_size is None else self.batch_size

    def fingerprint(self) -> dict[str, str]:
        """The fields that move numbers, as text that is the same in every process."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in _NO_NUMBERS]
        return {name: stable_text(getattr(self, name)) for name in fields}

    def build_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters of a network.

        Raises:
            PliantError: no parameter is trainable.
        """
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if not parameters:
            raise PliantError(f"{type(net).__name__} has no trainable parameters", fix="set requires_grad on some")
        if not isinstance(self.optimizer, str):
            return self.optimizer(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        # The same numbers in fewer calls; where parameters are large, several passes over all of them take longer.
        small = sum(p.numel() for p in parameters) < _SMALL * len(parameters)
        return torch.optim.AdamW(groups, lr=self.lr, foreach=True if small else None)

    def ways(self, net: nn.Module, device: torch.device, *, processes: int = 1) -> Ways:
        """How the steps of a network are computed on a device: precision and layout, with "auto" decided."""
        layout = "contiguous" if self.distributed == "fsdp2" else self.layout  # torch shards contiguous tensors
        return ways(net, device, precision=self.precision, layout=layout, processes=processes)


def stable_text(value: Any) -> str:
    """A `repr` without memory addresses: functions by their qualified name, dataclasses field by field."""
    if isinstance(value, functools.partial):
        words = [stable_text(value.func), *map(stable_text, value.args)]
        return f"partial({', '.join(words + [f'{k}={stable_text(v)}' for k, v in sorted(value.keywords.items())])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(f"{f.name}={stable_text(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(stable_text, value))}]"
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
