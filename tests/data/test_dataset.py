import dataclasses
from typing import Any

import pytest
import torch

from pliant.data import Dataset, Metric, Split


def split(n: int = 10, k: int = 3) -> Any:
    return Split(torch.arange(n * k, dtype=torch.float32).view(n, k), torch.arange(n) % 2)


def dataset(**changes: Any) -> Any:
    given = {
        "name": "d",
        "train": split(10),
        "val": split(4),
        "test": split(6),
        "task": "classify",
        "classes": ("a", "b"),
    }
    return Dataset(**{**given, **changes})


def test_batches_keep_the_order_without_a_generator() -> None:
    batches = list(split(10).batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), split(10).inputs)


def test_batches_drop_the_last() -> None:
    assert [len(y) for _, y in split(10).batches(4, drop_last=True)] == [4, 4]
    assert list(split(3).batches(4, drop_last=True)) == []


def test_batches_shuffle_by_generator_and_keep_pairs() -> None:
    def epoch(seed: int) -> Any:
        return list(split(10).batches(3, generator=torch.Generator().manual_seed(seed)))

    x, y = (torch.cat(parts) for parts in zip(*epoch(1), strict=True))
    assert not torch.equal(x, split(10).inputs)
    assert torch.equal(x[:, 0].sort().values, split(10).inputs[:, 0])
    assert torch.equal((x[:, 0] / 3).long() % 2, y)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epoch(1), epoch(1), strict=True))


def test_structured_inputs() -> None:
    x = torch.arange(6.0).view(6, 1)
    pair, named = Split((x, 2 * x), torch.arange(6)), Split({"a": x}, torch.arange(6))
    (first, second), y = next(iter(pair.batches(2)))
    assert torch.equal(second, 2 * first)
    assert y.tolist() == [0, 1]
    assert named.take(2).inputs["a"].shape == (2, 1)
    assert len(named.select(torch.tensor([5, 0]))) == 2


@pytest.mark.parametrize("call", [lambda s: s.batches(0), lambda s: s.take(0)])
def test_split_refuses_nothing_at_once(call: Any) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        call(split())


def test_split_refuses_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"same number of samples, got \[3, 4\]"):
        Split(torch.zeros(3, 1), torch.zeros(4))


def test_test_reads_are_counted() -> None:
    data = dataset()
    data.example()
    assert (repr(data), data.sizes, data.shape, data.outputs, data.test_reads)[-1] == 0
    assert len(data.test) == 6
    assert data.test_reads == 1
    assert dataset().test_reads == 0


def test_dataset_is_frozen() -> None:
    data = dataset()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.test = split()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_positional_order_of_the_fields() -> None:
    data = Dataset("d", split(5), split(4), split(3), "regress", (), {"scale": 1.0})
    assert data.sizes == {"train": 5, "val": 4, "test": 3}
    assert data.preprocessing == {"scale": 1.0}


@pytest.mark.parametrize(
    ("task", "loss", "metric"),
    [
        ("classify", "cross_entropy", Metric("accuracy", True)),
        ("dense", "cross_entropy", Metric("accuracy", True)),
        ("regress", "mse", Metric("mse", False)),
        ("next_token", "next_token", Metric("next_token_accuracy", True)),
    ],
)
def test_loss_and_metric(task: str, loss: str, metric: Metric) -> None:
    data = dataset(task=task)
    assert (data.loss, data.metric) == (loss, metric)


def test_dense_tasks_with_values_are_regressed() -> None:
    images = torch.randn(4, 2, 3, 3)
    data = Dataset("d", Split(images, images), Split(images, images), Split(images, images), "dense")
    assert (data.loss, data.metric, data.outputs) == ("mse", Metric("mse", False), 2)
    assert repr(data) == "Dataset(d: dense, 2 values, 4 train, 4 val, 4 test, shape (2, 3, 3))"


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match=r"task must be one of classify, .* got 'guess'"):
        dataset(task="guess")


def test_example_and_repr() -> None:
    data = dataset()
    assert torch.equal(data.example(3), data.train.inputs[:3])
    assert repr(data) == "Dataset(d: classify, 2 classes, 10 train, 4 val, 6 test, shape (3,))"
