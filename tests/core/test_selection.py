"""What a selection takes and refuses."""

import pytest

from pliant.core import Selection


def test_indices_are_sorted_and_equal_selections_are_equal() -> None:
    first, second = Selection({"width:a": [3, 1], "depth:b": False}), Selection({"depth:b": False, "width:a": (1, 3)})
    assert first == second
    assert hash(first) == hash(second)
    assert dict(first) == {"depth:b": False, "width:a": (1, 3)}
    assert repr(Selection({"w": [2]})) == "Selection({'w': (2,)})"


@pytest.mark.parametrize("wrong", [[], [-1], [1, 1]])
def test_indices_out_of_order_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one unit, none negative or twice"):
        Selection({"width:a": wrong})


def test_indices_that_are_no_ints_are_refused() -> None:
    with pytest.raises(TypeError, match=r"unit indices must be ints, got \[1.5\]"):
        Selection({"width:a": [1.5]})  # type: ignore[list-item]
