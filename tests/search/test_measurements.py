import sqlite3
from pathlib import Path

import pytest
import torch

from pliant.core import PliantError
from pliant.search.measurements import Measurements, digest, state_digest, tensors_digest


def test_measurements_are_found_by_content(tmp_path: Path) -> None:
    path = tmp_path / "measurements.sqlite"
    base = Measurements(path)
    base.put({"config": {"a": 1, "b": 2}, "objective": "x"}, {"value": 0.1, "spread": None})
    assert base.get({"objective": "x", "config": {"b": 2, "a": 1}}) == {"value": 0.1, "spread": None}
    assert base.get({"objective": "y", "config": {"b": 2, "a": 1}}) is None
    base.put({"config": {"a": 1, "b": 2}, "objective": "x"}, 3)
    base.close()
    again = Measurements(path)
    assert len(again) == 1
    assert again.get({"config": {"a": 1, "b": 2}, "objective": "x"}) == 3
    again.close()


def test_measurements_refuse_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "m.sqlite").write_text("this is no database" * 100)
    with pytest.raises(PliantError, match=r"m.sqlite: measurements cannot be read or written"):
        Measurements(tmp_path / "m.sqlite")


def test_measurements_refuse_what_json_cannot_hold() -> None:
    base = Measurements()
    with pytest.raises(ValueError, match="JSON"):
        base.put({"a": 1}, float("nan"))
    base.close()
    with pytest.raises(PliantError, match="memory"):
        base.get({"a": 1})
    assert issubclass(sqlite3.ProgrammingError, sqlite3.Error)


def test_digests_tell_values_shapes_and_names_apart() -> None:
    a, b = torch.arange(6.0), torch.arange(6.0).reshape(2, 3)
    assert tensors_digest(a) == tensors_digest(a.clone())
    assert len({tensors_digest(t) for t in (a, b, a.double(), a + 1e-6, b.T, [a, a])}) == 6
    assert state_digest({"x": a, "y": b}) == state_digest({"y": b, "x": a})
    assert state_digest({"x": a}) != state_digest({"z": a})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert tensors_digest([torch.tensor(3), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)])
