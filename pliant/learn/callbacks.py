"""The one way to look into a training while it runs."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class State:
    """Where a training is. The fields cannot be set; `net` is the network itself, to be read.

    Args:
        net: the network being trained.
        step: optimizer steps done.
        steps: optimizer steps of the whole training.
        epoch: the epoch this step belongs to, from 0.
        loss: of the last step; in `on_epoch` and `on_end` the mean of the last epoch.
        lr: learning rate of the last step (of the first parameter group).
        seconds: wall seconds of training steps so far, over all resumed parts.
        cpu_seconds: process CPU seconds of training steps so far, likewise.
        metric: name of the validation metric.
        val: its value after this epoch; None within an epoch and without validation data.
        run: the run folder, if any.
    """

    net: nn.Module
    step: int
    steps: int
    epoch: int
    loss: float
    lr: float
    seconds: float
    cpu_seconds: float
    metric: str
    val: float | None
    run: Path | None


class Callback:
    """Override what you need. An exception ends the training; the last checkpoint stays."""

    def on_step(self, state: State) -> None:
        """After every optimizer step."""

    def on_epoch(self, state: State) -> None:
        """After every epoch and its validation."""

    def on_end(self, state: State) -> None:
        """Once, when the last epoch is done. Not called for a training that was complete before."""
