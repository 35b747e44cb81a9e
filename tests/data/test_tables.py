import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.core import PliantError
from pliant.data import load
from pliant.data.tables import has_header, read_csv

NUMBERS = "\n".join(f"{i},{i * i},{'ab'[i % 2]}" for i in range(40))


def write(tmp_path: Path, text: str, name: str = "t.csv") -> Any:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_without_header_strings_are_classes(tmp_path: Path) -> None:
    data = load(write(tmp_path, NUMBERS))
    assert (data.task, data.classes, data.shape) == ("classify", ("a", "b"), (2,))
    assert "features in order: column 0, column 1" in data.notes
    assert torch.allclose(data.train.inputs.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(data.train.inputs.std(0, correction=0), torch.ones(2), atol=1e-5)
    assert json.loads(json.dumps(data.preprocessing)) == data.preprocessing


@pytest.mark.parametrize("target", ["size", 1, -2])
def test_header_and_target(tmp_path: Path, target: Any) -> None:
    rows = "\n".join(f"{i};{i * 0.5};{'ab'[i % 2]}" for i in range(40))
    data = load(write(tmp_path, "number;size;kind\n" + rows), target=target)
    assert (data.task, data.outputs) == ("regress", 1)
    assert "features in order: number, kind=a, kind=b" in data.notes
    assert data.notes[0] == "target 'size': quantities"


def test_values_and_order(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "a\tb\ty\n1\tred\t2\n3\tblue\t10\n\n5\tred\t2\n", "t.tsv"))
    assert table.x.tolist() == [[1, 0, 1], [3, 1, 0], [5, 0, 1]]
    assert table.columns == ("a", "b=blue", "b=red")
    assert table.y.tolist() == [0, 1, 0]
    assert table.classes == ("2", "10")
    assert table.x.dtype == np.float32


def test_quoted_cells_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffname,y\n"a, b",1.5\nc,2.5\n'.encode())
    table = read_csv(path)
    assert table.columns == ("name=a, b", "name=c")
    assert table.y.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["a", "b"], ["1", "2"]], True),
        ([["1", "2"], ["3", "4"]], False),
        ([["1", "x"], ["3", "y"]], False),
        ([["colour", "kind"], ["red", "x"], ["blue", "x"]], True),
        ([["red", "red"], ["blue", "x"]], False),
        ([["a", "b"]], False),
    ],
)
def test_has_header(rows: Any, expected: bool) -> None:
    assert has_header(rows) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: empty"),
        ("a\nb\n", "only one column"),
        ("1,2\n1,2,3\n", "row 2 has 3 cells, row 1 has 2"),
        ("a,y\n1,0\n,1\n", "column 'a': row 3 is empty, missing or not finite"),
        ("1,0\n?,1\n2,0\n", "column 'column 0': row 2 is empty"),
        ("a,y\n1,0\ninf,1\n", "column 'a': row 3 is empty, missing or not finite"),
        ("a,y\n1,x\n2,\n", "column 'y': row 3 is empty"),
        ("a,y\n1,0.5\n2,0.5\nx,1.5\n3,1.5\n", "column 'a': row 4 holds 'x' among numbers"),
        ("a,y\n" + "".join(f"n{i},{i}\n" for i in range(40)), "text with 40 different values, at most 32"),
        ('a,y\n"1,2\n', "no csv"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PliantError, match=message):
        load(write(tmp_path, text))


def test_bad_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00\x01,\x80")
    with pytest.raises(PliantError, match="cannot be read as text"):
        load(path)


@pytest.mark.parametrize("target", ["width", 9])
def test_unknown_target(tmp_path: Path, target: Any) -> None:
    with pytest.raises(ValueError, match=r"has no column .*columns are column 0, column 1, column 2"):
        load(write(tmp_path, NUMBERS), target=target)
