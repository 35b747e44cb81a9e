"""Loss values by hand, shapes, and the choice by name."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from pliant.learn import LossFn, cross_entropy, loss_function, mse, next_token

LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])  # probabilities 1/4, 3/4 and 4/5, 1/5


def test_cross_entropy_by_hand() -> None:
    expected = -(math.log(3 / 4) + math.log(1 / 5)) / 2
    assert cross_entropy(LOGITS, torch.tensor([1, 1])).item() == pytest.approx(expected)


def test_label_smoothing_by_hand() -> None:
    # Half the share 0.2 goes to each of the two classes: 0.9 on class 1, 0.1 on class 0.
    expected = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4))
    assert cross_entropy(LOGITS[:1], torch.tensor([1]), label_smoothing=0.2).item() == pytest.approx(expected)


def test_dense_and_token_layouts_agree_with_flat_ones() -> None:
    logits, targets = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    flat = cross_entropy(logits.permute(0, 2, 3, 1).reshape(-1, 5), targets.reshape(-1))
    torch.testing.assert_close(cross_entropy(logits, targets), flat)
    tokens, following = torch.randn(2, 7, 5), torch.randint(5, (2, 7))
    flat = cross_entropy(tokens.reshape(-1, 5), following.reshape(-1))
    torch.testing.assert_close(cross_entropy(tokens, following), flat)
    torch.testing.assert_close(next_token(tokens, following), flat)


def test_a_layout_with_two_readings_is_refused_but_not_for_next_token() -> None:
    logits, targets = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    with pytest.raises(ValueError, match="name the loss `next_token`"):
        cross_entropy(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), targets.reshape(-1))
    torch.testing.assert_close(next_token(logits, targets), expected)


def test_class_probabilities_are_targets_too() -> None:
    soft = torch.tensor([[0.25, 0.75]])
    expected = -(0.25 * math.log(1 / 4) + 0.75 * math.log(3 / 4))
    assert cross_entropy(LOGITS[:1], soft).item() == pytest.approx(expected)


def test_mse_by_hand_and_without_broadcasting() -> None:
    assert mse(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(2.5)
    assert mse(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        mse(torch.zeros(2, 2), torch.zeros(2))


@pytest.mark.parametrize("loss", [cross_entropy, next_token])
def test_shapes_that_do_not_fit_are_named(loss: LossFn) -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and targets \(5,\)"):
        loss(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))


def test_losses_of_bfloat16_outputs_are_float32() -> None:
    assert cross_entropy(LOGITS.bfloat16(), torch.tensor([1, 1])).dtype == torch.float32


def test_by_name_by_field_and_by_callable() -> None:
    @dataclass
    class Output:
        first: torch.Tensor
        logits: torch.Tensor

    output, targets = Output(torch.zeros(2, 2), LOGITS), torch.tensor([1, 1])
    expected = cross_entropy(LOGITS, targets)
    assert loss_function("cross-entropy")(output, targets) == expected
    assert loss_function("cross_entropy", "first")(output, targets).item() == pytest.approx(math.log(2))
    smooth = loss_function(partial(cross_entropy, label_smoothing=0.1))
    assert smooth(output, targets) == cross_entropy(LOGITS, targets, label_smoothing=0.1)
    assert loss_function(lambda whole, _: whole.first.sum())(output, targets) == 0
    assert loss_function(lambda field, _: field.sum(), "logits")(output, targets) == LOGITS.sum()


def test_bad_choices_are_named() -> None:
    with pytest.raises(ValueError, match="choose one of cross_entropy, mse, next_token"):
        loss_function("hinge")
    with pytest.raises(TypeError, match="int"):
        loss_function(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        cross_entropy(LOGITS, torch.tensor([1, 1]), label_smoothing=1.0)


def test_a_label_without_an_output_is_named() -> None:
    with pytest.raises(ValueError, match="the network has 3 outputs, but a label is 7"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))
