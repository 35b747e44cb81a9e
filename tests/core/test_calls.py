from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError, as_call, call, main_output, map_tensors, tensors_of

X, Y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
TOKENS = torch.tensor([1, 2])


class Sub(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor | None = None


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize("inputs", [(X, Y), [X, Y], {"right": Y, "left": X}])
def test_tuples_are_positional_and_dicts_are_keywords(inputs: Any) -> None:
    assert torch.equal(call(Sub(), inputs), X - Y)


def test_a_tensor_is_the_only_argument() -> None:
    assert torch.equal(call(nn.ReLU(), -X), torch.zeros(2))
    assert as_call(X) == ((X,), {})
    assert as_call({"a": X}) == ((), {"a": X})


@pytest.mark.parametrize("inputs", [3, "text", None])
def test_other_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(TypeError, match=r"a tensor, a tuple \(positional\) or a dict \(keyword\), got"):
        call(nn.ReLU(), inputs)


def test_map_tensors_keeps_the_structure() -> None:
    value = {"a": (X, [Y, 3]), "b": "text"}
    doubled = map_tensors(lambda tensor: tensor * 2, value)
    assert torch.equal(doubled["a"][0], X * 2)
    assert torch.equal(doubled["a"][1][0], Y * 2)
    assert doubled["a"][1][1] == 3
    assert doubled["b"] == "text"
    assert isinstance(doubled["a"], tuple)
    assert torch.equal(value["a"][0], torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]


def test_tensors_of_looks_everywhere_in_order() -> None:
    found = tensors_of((X, {"k": [Y, 1]}, Output(TOKENS, X), None))
    assert [id(tensor) for tensor in found] == [id(X), id(Y), id(TOKENS), id(X)]
    assert tensors_of("text") == []
    assert [id(tensor) for tensor in tensors_of(Pair(X, Y))] == [id(X), id(Y)]


@pytest.mark.parametrize(
    "output",
    [X, (TOKENS, X, Y), {"logits": X, "loss": Y}, {"loss": Y, "logits": X}, Output(Y, X), {"hidden": [TOKENS, X]}],
)
def test_the_tensor_a_loss_needs(output: Any) -> None:
    assert main_output(output) is X


def test_a_named_output() -> None:
    assert main_output({"a": X, "logits": Y}, "a") is X
    assert main_output(Output(X, Y), "hidden") is X
    with pytest.raises(PliantError, match=r"output \(dict\) has no tensor 'b'"):
        main_output({"a": X}, "b")


def test_no_floating_output() -> None:
    with pytest.raises(PliantError, match="returned no floating tensor, got tuple"):
        main_output((TOKENS,))
    with pytest.raises(PliantError, match="returned no floating tensor, got str"):
        main_output("text")
