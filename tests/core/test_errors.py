import pytest

from pliant.core import PliantError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PliantError("no rule for aten.foo"), "no rule for aten.foo"),
        (PliantError("no rule", where="net.py:3"), "net.py:3: no rule"),
        (PliantError("no rule.", where="net.py:3", fix="add one."), "net.py:3: no rule. add one"),
        (PliantError("no rule", fix="add one"), "no rule. add one"),
    ],
)
def test_one_line_with_place_and_way_out(error: PliantError, said: str) -> None:
    assert str(error) == said


def test_the_parts_stay_readable() -> None:
    error = PliantError("no rule", where="net.py:3", fix="add one")
    assert (error.problem, error.where, error.fix) == ("no rule", "net.py:3", "add one")
