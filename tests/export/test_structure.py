"""Inputs and outputs as flat tensors and plain data."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pliant.core import PliantError
from pliant.export.structure import InputForm, flatten, flatten_arrays, output_names
from pliant_runtime.executor import build


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


def test_outputs_are_flattened_and_built_again() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)
    value = {"first": a, "rest": (b, [c, 7, "text", None])}
    tensors, structure = flatten(value)
    assert [len(tensor) for tensor in tensors] == [1, 2, 3]
    assert output_names(structure) == ["first", "rest_0", "rest_1_0"]
    built = build(structure, [tensor.numpy() for tensor in tensors])
    assert isinstance(built["rest"], tuple)
    assert built["rest"][1][1:] == [7, "text", None]
    assert [array.shape for array in flatten_arrays(built)] == [(1,), (2,), (3,)]
    np.testing.assert_array_equal(built["rest"][1][0], c.numpy())


def test_dataclasses_become_dicts_without_what_is_missing() -> None:
    tensors, structure = flatten(Output(torch.zeros(2)))
    assert len(tensors) == 1
    assert structure == {"dict": {"logits": {"t": 0}}}


def test_lone_tensors_and_tuples_have_fixed_names() -> None:
    assert output_names(flatten(torch.zeros(1))[1]) == ["output"]
    assert output_names(flatten((torch.zeros(1), torch.zeros(1)))[1]) == ["output_0", "output_1"]


def test_outputs_of_other_types_are_refused() -> None:
    with pytest.raises(PliantError, match="output holds a object"):
        flatten([object()])


def test_rows_repeat_the_example_and_random_rows_stay_legal() -> None:
    form = InputForm({"tokens": torch.tensor([[3, 5], [7, 9]]), "scale": 2, "x": torch.randn(2, 4)})
    assert form.names == ["tokens", "x"]
    rows = form.rows(3)
    assert rows["tokens"].tolist() == [[3, 5], [7, 9], [3, 5]]
    assert rows["scale"] == 2
    drawn = form.random(50, torch.Generator().manual_seed(0))
    assert drawn["tokens"].shape == (50, 2)
    assert set(drawn["tokens"].flatten().tolist()) == {3, 5, 7, 9}
    assert drawn["x"].dtype == torch.float32


def test_random_integers_along_a_last_axis_of_three_stay_together() -> None:
    """The corners of a box drawn one by one would be no box."""
    boxes = torch.tensor([[[0, 0, 4, 5], [2, 3, 9, 9]], [[1, 1, 2, 2], [7, 0, 8, 6]]])
    drawn = InputForm(boxes).random(20, torch.Generator().manual_seed(0))
    assert drawn.shape == (20, 2, 4)
    assert {tuple(box) for box in drawn.flatten(0, 1).tolist()} == {tuple(box) for box in boxes.flatten(0, 1).tolist()}
