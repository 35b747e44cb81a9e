"""deep-architect: searches over a modular space of small image networks, each trained from scratch on Fashion-MNIST.

The space is written in the language of `pliant.core.Space`: a stem, one or two cells of which each is residual,
separable or a plain convolution with its own kernel and pooling, and a head, built from the parts of `pliant.nets`.
Every network is trained once (4,000 images, four epochs); searches are then replayed on the table, told validation
accuracy only. The rival is DeepArchitect's own tree search. Gains are points of accuracy of the best network found
within the budget, means over seeds; the same on test images, which were never told, stand beside them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from statistics import mean
from typing import Any

import torch
from torch import nn

from bench._common import Outcome, one_thread
from bench._exhaustive import Table, measured, replayed
from pliant.core import Config, Knob, Space, either, repeated
from pliant.data import Dataset, load
from pliant.learn import Settings, evaluate, train
from pliant.nets.dwsep import SeparableConv
from pliant.nets.resnet import BasicBlock
from pliant.search import Blueprint, Mcts, Objective, Proposer, Random, Ridge, SearchSettings, Smbo

REQUIRED = ("gain_over_random", "gain_over_rival")
IMAGES, VALIDATION, TEST, EPOCHS = 4000, 2000, 5000, 4
EVALUATIONS = 30
SEEDS = tuple(range(40))
PUBLISHED = Mcts(explore=0.33, bias=math.inf, temperature=math.inf)
"""The tree search of the paper: UCT over bisected decisions, even rollouts; `Mcts()` knows more."""

Layer = tuple[nn.Module, int]
"""A module and how many channels it gives."""


def _residual(values: dict[str, Any]) -> Callable[[int, int], Layer]:
    return lambda channels, stride: (BasicBlock(channels, 2 * channels, stride=stride), 2 * channels)


def _separable(values: dict[str, Any]) -> Callable[[int, int], Layer]:
    def made(channels: int, stride: int) -> Layer:
        return SeparableConv(channels, 2 * channels, stride=stride, activation="relu"), 2 * channels

    return made


def _plain(values: dict[str, Any]) -> Callable[[int, int], Layer]:
    def made(channels: int, stride: int) -> Layer:
        kernel: int = values["kernel"]
        pool = (nn.MaxPool2d if values["pool"] == "max" else nn.AvgPool2d)(stride) if stride > 1 else nn.Identity()
        convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(), pool), channels

    return made


def _network(values: dict[str, Any]) -> nn.Module:
    channels = values["stem"]
    layers: list[nn.Module] = [
        nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    ]  # fmt: skip
    for number, cell in enumerate(values["cell"]):
        layer, channels = cell["kind"](channels, 2 if number < 2 else 1)
        layers.append(layer)
    layers += [nn.AdaptiveAvgPool2d(values["head"]), nn.Flatten(), nn.Linear(channels * values["head"] ** 2, 10)]
    return nn.Sequential(*layers)


def space() -> Space:
    """What is searched: 252 networks; cells double the channels or, plain ones, keep them."""
    plain = Space([Knob("kernel", (1, 3)), Knob("pool", ("average", "max"))], build=_plain)
    kinds = {"residual": Space([], build=_residual), "separable": Space([], build=_separable), "plain": plain}
    cell = Space([either("kind", kinds)])
    return Space([Knob("stem", (8, 16)), repeated("cell", cell, n=(1, 2)), Knob("head", (1, 2, 3))], build=_network)


def data() -> Dataset:
    """Fashion-MNIST, cut down."""
    whole = load("fashion-mnist", limit=IMAGES)
    val, test = whole.val.take(VALIDATION), whole.test.take(TEST)
    return Dataset(whole.name, whole.train, val, test, whole.task, whole.classes, whole.preprocessing)


def _trained(module: nn.Module, config: Config, *, dataset: Dataset, epochs: int) -> nn.Module:
    """A few epochs of AdamW; the same order of images for everybody."""
    settings = Settings(lr=4e-3, batch_size=64, progress=False)
    nothing = dataset.val.select(slice(0, 0))
    unvalidated = Dataset(dataset.name, dataset.train, nothing, dataset.train.take(1), dataset.task, dataset.classes)
    train(module, unvalidated, epochs=epochs, settings=settings, seed=0)
    return module.eval()


def table(dataset: Dataset, *, epochs: int = EPOCHS, limit: int | None = None) -> tuple[Table, float]:
    """Validation and test accuracy of every network, and the seconds that took; a search is told the former."""
    plan = Blueprint(
        space(), torch.zeros(2, 1, 28, 28), train=partial(_trained, dataset=dataset, epochs=epochs), name="cells"
    )
    test = dataset.test
    tested = Objective("test", lambda module, config: evaluate(module, test), maximise=True)
    settings = SearchSettings(workers=2, progress=False)
    sizes = [len(dataset.train), len(dataset.val), len(test)]
    what = {"row": "deep-architect", "space": plan.space.to_dict(), "sizes": sizes, "epochs": epochs, "limit": limit,
            "torch": torch.__version__}  # fmt: skip
    front, seconds = measured(plan, dataset, objectives=("accuracy", tested), settings=settings, what=what, limit=limit)
    return Table.of(plan.space, front, 1), seconds


def contest(
    found: Table, *, evaluations: int = EVALUATIONS, seeds: Sequence[int] = SEEDS
) -> dict[str, dict[str, float]]:
    """By searcher: the best validation accuracy within the budget, and its test accuracy, means over seeds."""
    contestants: dict[str, Proposer] = {
        "ours": Ridge(),
        "smbo": Smbo(),
        "tree": Mcts(),
        "mcts": PUBLISHED,
        "random": Random(),
    }
    walks = iter(replayed([(found, p, evaluations, seed) for p in contestants.values() for seed in seeds]))
    told = {}
    for name in contestants:
        best = [min(walk, key=lambda config: found.costs[config]) for walk in islice(walks, len(seeds))]
        told[name] = {key: mean(found.values[config][key] for config in best) for key in ("accuracy", "test")}
    return told


def run() -> Outcome:
    """The whole row."""
    one_thread()
    found, seconds = table(data())
    told = contest(found)

    def gain(over: str, key: str = "accuracy") -> float:
        return 100 * (told["ours"][key] - told[over][key])

    best = -min(found.costs.values())[0]
    figures = {
        "gain_over_random": gain("random"), "gain_over_rival": gain("mcts"),
        "test_gain_over_random": gain("random", "test"), "test_gain_over_rival": gain("mcts", "test"),
        "tree_gain_over_random": 100 * (told["tree"]["accuracy"] - told["random"]["accuracy"]),
        "smbo_gain_over_random": 100 * (told["smbo"]["accuracy"] - told["random"]["accuracy"]),
        "configs": len(found.costs), "accuracy": told["ours"]["accuracy"], "best_accuracy": best,
    }  # fmt: skip
    baseline = {"accuracy": told["mcts"]["accuracy"]}
    settings = {"evaluations": EVALUATIONS, "accuracies": told, "space": found.space.to_dict(), "epochs": EPOCHS}
    what = f"Fashion-MNIST, {IMAGES} training, {VALIDATION} validation images, at most {TEST} test images"
    return Outcome(figures, what, SEEDS, baseline, cpu_seconds=seconds, settings=settings)
