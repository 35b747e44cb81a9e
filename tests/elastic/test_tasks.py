"""Families for every kind of task, through the public API: make, train, evaluate, search, extract."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import pliant
from pliant import nets
from pliant.data import Dataset, Split, denoising, load

torch.set_num_threads(1)


@dataclass(frozen=True)
class Task:
    """A task with a network for it.

    Args:
        data: makes its data set.
        net: makes a network for it.
        kind: what the data set's task must be.
        loss, metric: what must be trained on and judged by.
        better: what every network must reach, from the figure of a constant answer: figure -> bar.
        lr: learning rate.
        epochs: of the training.
        file: what must be in $PLIANT_DATA.
    """

    data: Callable[[], Dataset]
    net: Callable[[Dataset], Any]
    kind: str
    loss: str
    metric: str
    better: Callable[[float], float]
    lr: float = 1e-2
    epochs: int = 4
    file: str = ""


def digit_rows() -> Dataset:
    """Digits read line by line: 8 steps of 8 pixels."""
    digits = load("digits")
    parts = {name: (split.inputs[:, 0], split.targets) for name, split in splits(digits).items()}
    given = {f"{axis}_{name}": pair[i] for name, pair in parts.items() for i, axis in enumerate("xy")}
    return Dataset.of(given)


def digit_ink() -> Dataset:
    """Which pixels of a noisy digit are ink: a class per pixel."""
    noisy = denoising(load("digits"))
    given = {}  # type: ignore[var-annotated]
    for name, split in splits(noisy).items():
        given |= {f"x_{name}": split.inputs, f"y_{name}": (split.targets[:, 0] > 0.5).long()}
    return Dataset.of(given)


def diabetes() -> Dataset:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return Dataset.of((20 * x, (y - y.mean()) / y.std()))


def splits(data: Dataset) -> dict[str, Split]:
    return {"train": data.train, "val": data.val, "test": data.test}


def few(data: Dataset, n: int) -> Dataset:
    parts: dict[str, Any] = {name: split.take(n) for name, split in splits(data).items()}
    return Dataset(data.name, task=data.task, classes=data.classes, **parts)


def mlp(data: Dataset) -> Any:
    return nets.mlp(data.shape, data.outputs, hidden=(32, 32))


def gpt(data: Dataset) -> Any:
    return nets.gpt(data.shape, data.outputs, dim=32, depth=2, heads=4)


def lstm(data: Dataset) -> Any:
    return nets.lstm(data.shape, data.outputs, hidden=32, layers=2)


def unet(data: Dataset) -> Any:
    return nets.unet(data.shape, data.outputs, width=8, levels=1, blocks=2)


def half(figure: float) -> float:
    return figure / 2


def cleaner(constant: float) -> float:
    """Less than the noise that was added (0.5 squared)."""
    return min(0.25, constant / 2)


TASKS = {
    "image classification": Task(
        lambda: load("digits"), lambda d: nets.resnet(d.shape, d.outputs, blocks=(2, 1), width=8), "classify",
        "cross_entropy", "accuracy", lambda constant: 4 * constant,
    ),
    "regression": Task(diabetes, mlp, "regress", "mse", "mse", lambda constant: 0.85 * constant, epochs=12),
    "next-token prediction": Task(
        lambda: load("tiny-text", context=32), gpt, "next_token", "next_token", "next_token_accuracy",
        lambda constant: 1.2 * constant, epochs=25,
    ),
    "sequence classification": Task(
        digit_rows, lstm, "classify", "cross_entropy", "accuracy", lambda constant: 4 * constant, epochs=5
    ),
    "dense values": Task(lambda: denoising(load("digits")), unet, "dense", "mse", "mse", cleaner),
    "dense classes": Task(
        digit_ink, unet, "dense", "cross_entropy", "accuracy", lambda constant: (1 + constant) / 2
    ),
    "regression, UCI": Task(
        lambda: load("concrete"), mlp, "regress", "mse", "mse", half, epochs=12, file="tabular/concrete.npz"
    ),
    "next-token prediction, Shakespeare": Task(
        lambda: few(load("tiny-shakespeare", context=32), 1200), gpt, "next_token", "next_token", "next_token_accuracy",
        lambda constant: 1.2 * constant, epochs=12, file="text/tinyshakespeare.txt",
    ),
    "sequence classification, vowels": Task(
        lambda: load("japanese-vowels"), lstm, "classify", "cross_entropy", "accuracy", lambda constant: 4 * constant,
        epochs=8, file="timeseries/JapaneseVowels_eq.npz",
    ),
    "dense values, Fashion-MNIST": Task(
        lambda: denoising(load("fashion-mnist", limit=200)), unet, "dense", "mse", "mse", cleaner,
        file="fashion_mnist/train-images-idx3-ubyte.gz",
    ),
}  # fmt: skip


def constant_figure(data: Dataset) -> float:
    """What the best answer that ignores the input reaches on the validation split."""
    seen, asked = data.train.targets, data.val.targets
    if seen.is_floating_point():
        return float((asked - seen.mean(0)).square().mean())
    return float((asked == seen.flatten().mode().values).double().mean())


MARKED = [pytest.param(name, marks=pytest.mark.slow) if task.file else name for name, task in TASKS.items()]


@pytest.mark.parametrize("name", MARKED)
def test_a_family_is_made_trained_searched_and_taken_apart(name: str) -> None:
    task = TASKS[name]
    if task.file and not (Path(os.environ.get("PLIANT_DATA", "")) / task.file).is_file():
        pytest.skip(f"{task.file} is not in $PLIANT_DATA")
    torch.manual_seed(0)
    data = task.data()
    assert (data.task, data.loss, data.metric.name) == (task.kind, task.loss, task.metric)
    higher = data.metric.higher_is_better
    net = pliant.elastic(task.net(data), data.example(), verbose=False)
    assert net.space.size >= 4
    settings = pliant.Settings(lr=task.lr, progress=False)
    history = pliant.train(net, data, epochs=task.epochs, settings=settings)
    assert len(history.epochs) == task.epochs

    front = pliant.search(net, data, objectives=("accuracy", "flops"), n_trials=6)
    assert (front.objectives[0].key, front.objectives[0].maximise) == (task.metric, higher)
    bar = task.better(constant_figure(data))
    assert (bar < 1) if higher else (bar > 0)
    best = front.best("accuracy")
    figure = best.values[task.metric]
    assert figure > bar if higher else figure < bar
    module = net.extract(best, calibrate=[data.example(256)])
    assert pliant.evaluate(module, data.val, metric=data.metric) == pytest.approx(figure, rel=0.1)  # type: ignore[arg-type]
    assert net.cost(net.space.smallest()).flops < net.cost({}).flops / 2
    blocks = {knob.name: True for knob in net.space if knob.kind == "depth"}
    worst = net.extract(net.space.smallest().replace(blocks), calibrate=[data.example(256)])
    small = pliant.evaluate(worst, data.val, metric=data.metric)  # type: ignore[arg-type]
    constant = constant_figure(data)
    assert small > constant if higher else small < constant


def test_half_a_unet_is_a_unet_of_half_the_width() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = pliant.elastic(nets.unet((3, 8, 8), 2, width=8, levels=2, blocks=2).eval(), x, verbose=False, min_size=2)
    halves = {knob.name: knob.choices[-1] // 2 for knob in net.space if knob.kind == "width"}
    assert len(halves) > 8
    narrow = net.extract(halves, into=nets.unet((3, 8, 8), 2, width=4, levels=2, blocks=2).eval())
    with torch.no_grad(), net.using(halves):
        torch.testing.assert_close(narrow(x), net(x), atol=1e-5, rtol=0)
    skipped = [knob.name for knob in net.space if knob.kind == "depth"]
    assert len(skipped) >= 5  # one block of every level


def test_the_accuracy_of_tokens_is_searched_where_context_and_vocabulary_are_of_one_size() -> None:
    """Logits [N, T, V] with T == V could be read both ways; the task says which."""
    data = load("tiny-text", limit=20)
    data = load("tiny-text", context=data.outputs, limit=20)
    net = pliant.elastic(nets.gpt(data.shape, data.outputs, dim=16, depth=1, heads=2), data.example(), verbose=False)
    front = pliant.search(net, data, objectives=("accuracy", "flops"), n_trials=2)
    point = front.points[0]
    found = pliant.evaluate(net.extract(point), data.val, metric="next_token_accuracy")
    assert point.values[front.objectives[0].key] == pytest.approx(found)


def test_perplexity_is_e_to_the_nats() -> None:
    data = load("tiny-text", context=16, limit=20)
    net = gpt(data)
    nats = pliant.evaluate(net, data.val, metric="next_token_loss")
    assert pliant.evaluate(net, data.val, metric="perplexity") == pytest.approx(math.exp(nats))
