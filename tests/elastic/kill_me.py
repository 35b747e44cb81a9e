"""A training of a family that kills itself: `python kill_me.py RUN RECIPE STEP`. Run by test_resume_recipes.py."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.data import Dataset, Split
from pliant.elastic import Elastic, OnePass, elastic, one_pass
from pliant.elastic.recipes import AllWidths, Nested, ProgressiveShrinking, Sandwich
from pliant.learn import Callback, Recipe, Settings, State, train

STEPS = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class Bends(nn.Module):
    """Kernels, widths, depths, BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(Block(), Block())
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))
        return logits


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: State) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def teacher() -> nn.Module:
    torch.manual_seed(11)
    return Bends()


RECIPES = {
    "nested": Nested,
    "accumulated": lambda: Nested(subnets=2, knobs=("width:*", "depth:*")),
    "sandwich": Sandwich,
    "bignas": lambda: Sandwich(random=1, distil=True, labels=0.2),
    "ofa": ProgressiveShrinking,
    "taught": lambda: ProgressiveShrinking(teacher=teacher(), whole=0.1, subnets=2),
    "one pass": AllWidths,
    "one pass, shared heads": AllWidths,
}


def data() -> Dataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(76, 1, 6, 6, generator=generator)
    y = x.mean((1, 2, 3)).mul(8).round().clamp(-1, 1).long() + 1
    part, val = Split(x[:64], y[:64]), Split(x[64:], y[64:])
    return Dataset("noise", part, val, val, classes=("a", "b", "c"))


def family(name: str) -> Elastic | OnePass:
    torch.manual_seed(5)
    example = torch.zeros(2, 1, 6, 6)
    if name == "one pass":
        return one_pass(Bends(), example, leak=0.3)
    if name == "one pass, shared heads":
        return one_pass(Bends(), example, heads="shared")
    return elastic(Bends(), example, choices={"kernel:*": [3, 5]}, verbose=False)


def run(folder: Path | None, name: str, *callbacks: Callback) -> Elastic | OnePass:
    net = family(name)
    recipe: Recipe = RECIPES[name]()  # type: ignore[operator]
    settings = Settings(batch_size=8, lr=0.01, checkpoint_every=3, callbacks=callbacks, progress=False)
    train(net, data(), recipe=recipe, epochs=3, run=folder, settings=settings, seed=2)
    return net


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], DieAt(int(sys.argv[3])))
