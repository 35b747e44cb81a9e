"""Figures, tables and settings for people."""

import pytest

from pliant.core import PliantError
from tools.markdown import BEGIN, END, number, replaced, settings


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (1234567, "1,234,567"),
        (0.000123456, "0.0001235"),
        (1234.56, "1,234.6"),
        (7.73713e25, "7.737e+25"),
        (None, ""),
        (True, "True"),
        ("a | b\nc", "a \\| b c"),
    ],
)
def test_numbers_for_people(value: object, text: str) -> None:
    assert number(value) == text


def test_what_fits_a_line_is_a_line() -> None:
    told = settings({"epochs": 3, "rates": [0.006, 0.015], "by": {"nested": 0.015}, "note": "a | b"}, "row.json")
    assert told == "- epochs: 3\n- rates: 0.006, 0.015\n- by: nested 0.015\n- note: a \\| b\n"


def test_small_tables_are_tables() -> None:
    rows = [{"width": 8, "depth": True}, {"width": 16, "depth": False}]
    long = {f"recipe{i}": [0.91, 0.90, 0.89, 0.88, 0.87, 0.86] for i in range(6)}
    told = settings({"picks": rows, "quality": long}, "row.json")
    lines = told.splitlines()
    assert lines[:5] == ["picks:", "", "| `width` | `depth` |", "| ---: | ---: |", "| 8 | True |"]
    assert "|  | `1` | `2` | `3` | `4` | `5` | `6` |" in lines
    assert "| `recipe5` | 0.91 | 0.9 | 0.89 | 0.88 | 0.87 | 0.86 |" in lines


def test_maps_of_maps_are_taken_apart_while_they_are_small() -> None:
    told = settings({"resnet": {"rate": 0.1, "deep": {"x": list(range(300))}}}, "row.json")
    assert told == "- resnet.rate: 0.1\n- resnet.deep.x: see `row.json`\n"
    many = {str(i): {"x": {"y": [i, i]}, "z": "text"} for i in range(40)}
    assert settings({"networks": many, "ragged": [[1], [2, 3]]}, "row.json") == "- networks, ragged: see `row.json`\n"


def test_only_the_measured_part_of_a_page_is_written_anew() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    new = replaced(page, "\nnew\n\n", "training.md")
    assert new == f"before\n{BEGIN}\nnew\n\n{END}after\n"
    assert replaced(new, "\nnew\n\n", "training.md") == new
    with pytest.raises(PliantError, match=r"training\.md: the comments around what was measured are missing"):
        replaced("no comments", "", "training.md")
