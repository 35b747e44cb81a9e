"""A training that kills itself: `python kill_me.py RUN WHEN COUNT`. No test file: test_resume.py runs it."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.data import Dataset, Split
from pliant.learn import Callback, History, Settings, State, train

EPOCHS, STEPS = 3, 39


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: State) -> None:
        if state.step == self.step:
            die()


class Tied(nn.Module):
    """Dropout (torch's generator), BatchNorm (buffers), tied weights, an index buffer and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Any:
        x = self.drop(self.norm(self.first(x).relu()))
        return self.head(self.drop(self.second(x * self.frozen)[:, self.order]))


def data() -> Dataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(120, 8, generator=generator)
    y = (x[:, :3] + 0.3 * torch.randn(120, 3, generator=generator)).argmax(1)
    part, val = Split(x[:101], y[:101]), Split(x[101:], y[101:])
    return Dataset("blobs", part, val, val, classes=("a", "b", "c"))


def run(folder: Path | None, *callbacks: Callback, **changes: Any) -> tuple[Tied, History]:
    settings = Settings(**{"batch_size": 8, "lr": 0.01, "checkpoint_every": 4, "callbacks": callbacks, **changes})
    net = Tied()
    return net, train(net, data(), epochs=EPOCHS, run=folder, settings=settings, seed=2)


if __name__ == "__main__":
    folder, when, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if when == "step":
        run(folder, DieAt(count))
    elif when == "replace":  # while files are renamed: in the middle of writing a checkpoint
        real, left = os.replace, [count]

        def replace(a: Any, b: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                die()
            real(a, b)

        os.replace = replace  # type: ignore[assignment]
        run(folder)
