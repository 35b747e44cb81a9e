"""One of several processes that train together: `python -m tests.learn.together RANK SIZE FOLDER WHAT`.

No test file: test_distributed.py runs it, and trains the same cases alone.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

import pliant
from pliant import nets
from pliant.core import PliantError, call
from pliant.data import Dataset, Split
from pliant.elastic.recipes.nested import Nested
from pliant.elastic.recipes.sandwich import Sandwich
from pliant.learn import Batch, Callback, History, LossFn, Plain, Recipe, Settings, State, train

Case = tuple[nn.Module, Dataset, Recipe | None, Settings]
SGD = Settings(optimizer="sgd", lr=0.05, batch_size=16, progress=False)


def vectors(samples: int = 101) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 12, generator=generator)
    y = x[:, :3].argmax(1)
    val = Split(x[:20], y[:20])
    return Dataset("vectors", Split(x, y), val, val, classes=("a", "b", "c"))


def images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1, 8, 8, generator=generator) * torch.arange(1, 49).reshape(-1, 1, 1, 1) / 20
    val = Split(x[:8], torch.arange(8) % 3)
    return Dataset("images", Split(x, torch.arange(48) % 3), val, val, classes=("a", "b", "c"))


def tokens() -> Dataset:
    x = torch.randint(11, (70, 8), generator=torch.Generator().manual_seed(0))
    part = Split(x, (x * 3 + 1) % 11)
    return Dataset("tokens", part, part.take(20), part, task="next_token", classes=tuple("abcdefghijk"))


def fresh(make: Callable[[], nn.Module], rank: int) -> nn.Module:
    torch.manual_seed(5 + rank)  # other weights in every process: those of process 0 count
    return make()


def mlp(dropout: float = 0.0) -> nn.Module:
    hidden = [nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(16, 3))


def gpt() -> nn.Module:
    return nets.gpt((8,), 11, dim=16, depth=2, heads=2)


def convnet() -> nn.Module:
    return nets.resnet((1, 8, 8), 3, width=4)


class Unused(nn.Module):
    """Has a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = mlp(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


class Twice(Recipe):
    """A recipe of one's own: two forward passes."""

    def __repr__(self) -> str:
        return "Twice()"

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = torch.rand((), generator=generator)
        return loss_fn(call(net, batch[0]), batch[1]) + noise * loss_fn(call(net, batch[0] * 0.5), batch[1])


def elastic(make: Callable[[], nn.Module], data: Dataset) -> Callable[[], nn.Module]:
    return lambda: pliant.elastic(make(), data.example(), verbose=False)


def settings(**changes: Any) -> Settings:
    return Settings(**{"optimizer": "sgd", "lr": 0.05, "batch_size": 16, "progress": False, **changes})


CASES: dict[str, Callable[[int], Case]] = {
    # 101 samples: the last batch of 5 gives one process 2 and the other 3.
    "plain": lambda rank: (fresh(mlp, rank), vectors(), Plain(), settings(grad_clip=0.5)),
    "accumulated": lambda rank: (fresh(mlp, rank), vectors(), Plain(), settings(accumulate=2)),
    "unused": lambda rank: (fresh(Unused, rank), vectors(), Plain(), settings()),
    "own recipe": lambda rank: (fresh(mlp, rank), vectors(), Twice(), settings(grad_clip=0.5)),
    "gpt": lambda rank: (fresh(gpt, rank), tokens(), Plain(), settings(weight_decay=0.1)),
    "nested": lambda rank: (fresh(elastic(mlp, vectors()), rank), vectors(), Nested(), settings(accumulate=2)),
    "sandwich": lambda rank: (fresh(elastic(gpt, tokens()), rank), tokens(), Sandwich(), settings()),
}
SHARDED = ("plain", "accumulated", "unused", "own recipe", "gpt")


def resumed(kind: str, rank: int, **changes: Any) -> Case:
    net = fresh(lambda: mlp(0.3), rank) if kind != "family" else fresh(elastic(convnet, images()), rank)
    data = vectors() if kind != "family" else images()
    given = {"optimizer": "adamw", "lr": 0.01, "batch_size": 16, "checkpoint_every": 2, "progress": False}
    recipe = None if kind == "family" else Plain()
    return net, data, recipe, Settings(**given, distributed="ddp" if kind == "family" else kind, **changes)  # type: ignore[arg-type]


class StopAt(Callback):
    def on_step(self, state: State) -> None:
        if state.step == 5:
            raise RuntimeError("stop")


def run(case: Case, folder: Path | None = None) -> tuple[nn.Module, History]:
    net, data, recipe, chosen = case
    return net, train(net, data, recipe=recipe, epochs=3, run=folder, settings=chosen, seed=1)


def keep(path: Path, net: nn.Module, history: History) -> None:
    losses = torch.tensor([record.loss for record in history.steps])
    states = {name: tensor.detach().clone().contiguous() for name, tensor in net.state_dict().items()}
    save_file({**states, "losses": losses}, path)


def equal_runs(rank: int, folder: Path) -> None:
    """Every case, wrapped and sharded."""
    for name, case in CASES.items():
        for kind in ("ddp", "fsdp2") if name in SHARDED else ("auto",):
            net, data, recipe, chosen = case(rank)
            changed = Settings(**{**vars(chosen), "distributed": kind})
            keep(folder / f"{name}.{kind}.{rank}", *run((net, data, recipe, changed)))


def stopped_runs(rank: int, folder: Path) -> None:
    """Stopped and started again, beside one that is not."""
    for kind in ("ddp", "fsdp2", "family"):
        keep(folder / f"{kind}.whole.{rank}", *run(resumed(kind, rank), folder / f"{kind} whole"))
        try:
            run(resumed(kind, rank, callbacks=(StopAt(),)), folder / f"{kind} parts")
        except RuntimeError as error:
            if str(error) != "stop":
                raise
        keep(folder / f"{kind}.parts.{rank}", *run(resumed(kind, rank), folder / f"{kind} parts"))
        keep(folder / f"{kind}.again.{rank}", *run(resumed(kind, rank), folder / f"{kind} parts"))


class Nan(nn.Module):
    """Its loss is not finite, in one process."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.body, self.factor = mlp(), math.nan if rank else 1.0

    def forward(self, x: Tensor) -> Any:
        return self.body(x) * self.factor


def refusals(rank: int, folder: Path) -> None:
    """What both processes say."""
    data, heard = vectors(), {}
    family, used = fresh(elastic(mlp, data), rank), folder / "run"
    if rank == 0:
        used.write_text("a file")
    attempts: dict[str, Callable[[], Any]] = {
        "family": lambda: train(family, data, settings=settings(distributed="fsdp2")),
        "arguments": lambda: train(mlp(), data, seed=rank, settings=SGD),
        "nan": lambda: train(Nan(rank), data, settings=SGD),
        "rows": lambda: train(mlp(), data, settings=settings(batch_size=1)),
        "folder": lambda: train(mlp(), data, settings=SGD, run=used),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (PliantError, ValueError) as error:
            heard[name] = str(error)
    (folder / f"heard.{rank}").write_text(json.dumps(heard))


class Leave(Callback):
    """Process 1 leaves, or hangs, after three steps."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_step(self, state: State) -> None:
        if self.rank == 1 and state.step == 3:
            if self.how == "dies":
                os._exit(1)
            time.sleep(7)


def left_alone(rank: int, folder: Path, how: str) -> None:
    begun = time.monotonic()
    try:
        net, data, recipe, chosen = CASES["nested"](rank)
        chosen = Settings(**{**vars(chosen), "callbacks": (Leave(rank, how),)})
        run((net, data, recipe, chosen))
    except PliantError as error:
        text = json.dumps({"error": str(error), "seconds": time.monotonic() - begun})
        (folder / f"{how}.{rank}").write_text(text)
    os._exit(0)


def statistics(rank: int, folder: Path) -> None:
    """BatchNorm, while the weights stand still."""
    still = settings(distributed="ddp", lr=1e-12, weight_decay=0.0)
    keep(folder / f"norm.{rank}", *run((fresh(convnet, rank), images(), Plain(), still)))


def main(rank: int, size: int, folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    if what == "torchrun":  # as torchrun would; the group is made by the settings
        net, data, recipe, _ = CASES["plain"](rank)
        keep(folder / f"torchrun.{rank}", *run((net, data, recipe, settings(grad_clip=0.5, distributed="ddp"))))
        return
    patience = timedelta(seconds=3 if what in ("dies", "hangs") else 100)
    method = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=size, timeout=patience)
    if what in ("dies", "hangs"):
        left_alone(rank, folder, what)
    for part in what.split(","):
        {"equal": equal_runs, "stopped": stopped_runs, "refusals": refusals, "norm": statistics}[part](rank, folder)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
