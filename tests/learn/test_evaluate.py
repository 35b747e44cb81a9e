"""Figures by hand, and a network that is given back as it was."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.data import Dataset, Split
from pliant.learn import evaluate, per_class, predict


class Table(nn.Module):
    """Returns its input: the split's inputs are the outputs."""

    def forward(self, x: Tensor) -> Any:
        return x


ONE_HOT = torch.eye(3)[[0, 1, 2, 0]]


def test_accuracy_and_per_class_by_hand() -> None:
    split = Split(ONE_HOT, torch.tensor([0, 1, 1, 2]))
    for batch_size in (1, 3, 512):
        assert evaluate(Table(), split, batch_size=batch_size) == 0.5
    assert per_class(Table(), split, classes=("a", "b", "c")) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert per_class(Table(), split, classes=("a", "b", "c", "d")) == {"a": 1.0, "b": 0.5, "c": 0.0}
    with pytest.raises(ValueError, match="got 2 classes"):
        per_class(Table(), split, classes=("a", "b"))


def test_regression_by_hand() -> None:
    split = Split(torch.tensor([[1.0], [3.0], [0.0]]), torch.tensor([0.0, 1.0, 2.0]))
    assert evaluate(Table(), split, batch_size=2) == pytest.approx(3.0)
    assert evaluate(Table(), split, metric="rmse", batch_size=2) == pytest.approx(math.sqrt(3.0))


def test_tokens_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    split = Split(logits, torch.tensor([[1, 0]]))
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert evaluate(Table(), split, metric="next_token_loss") == pytest.approx(expected)
    assert evaluate(Table(), split, metric="next_token_accuracy") == 1.0
    ignored = Split(logits, torch.tensor([[1, -100]]))
    assert evaluate(Table(), ignored, metric="next_token_loss") == pytest.approx(math.log(4 / 3))


def test_dense_accuracy_leaves_ignored_positions_out() -> None:
    split = Split(torch.eye(3)[None], torch.tensor([[0, 0, -100]]))
    with pytest.raises(ValueError, match="axis 1 or last"):
        evaluate(Table(), split)
    split = Split(torch.eye(3)[None, :, :2], torch.tensor([[0, 2]]))
    assert evaluate(Table(), split) == 0.5


def test_own_metric_is_the_mean_over_samples() -> None:
    split = Split(torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(3, 1))
    assert evaluate(Table(), split, metric=lambda output, _: output.mean(), batch_size=2) == pytest.approx(3.0)


def test_predict_keeps_the_order() -> None:
    inputs = torch.randn(7, 2)
    assert torch.equal(predict(Table(), Split(inputs, torch.zeros(7)), batch_size=3), inputs)


def test_tuple_and_dict_inputs_and_named_outputs() -> None:
    class Net(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return {"sum": a + b, "difference": a - b}

    a, b = torch.rand(4, 3), torch.rand(4, 3)
    targets = (a - b).argmax(1)
    for inputs in ((a, b), {"b": b, "a": a}):
        assert evaluate(Net(), Split(inputs, targets), output="difference", batch_size=3) == 1.0
        assert torch.equal(predict(Net(), Split(inputs, targets)), a + b)


def test_modes_and_gradients_are_given_back_even_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    split = Split(torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    assert evaluate(net, split, batch_size=2) == evaluate(net, split, batch_size=5)
    with pytest.raises(ValueError, match="do not fit"):
        evaluate(net, Split(torch.randn(5, 2), torch.zeros(5, 7, dtype=torch.int64)))
    assert [module.training for module in net] == [True, False, True]
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_arguments_are_named() -> None:
    split = Split(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        evaluate(Table(), split, batch_size=0)
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Table(), Split(torch.zeros(0, 2), torch.zeros(0)))
    with pytest.raises(ValueError, match="choose one of accuracy"):
        evaluate(Table(), split, metric="f1")
    with pytest.raises(TypeError, match=r"such as data\.val"):
        evaluate(Table(), Dataset("d", split, split, split))  # type: ignore[arg-type]
