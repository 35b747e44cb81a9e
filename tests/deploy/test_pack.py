"""Weights stored once, and slices that are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.core import PliantError, sha256_file
from pliant.deploy.pack import Packer, Ranges, cut
from pliant_runtime.grammar import ALIGNMENT, FileFact, Initializer, Stored
from pliant_runtime.weights import Weights

Array = NDArray[Any]


def stored(packer: Packer, folder: Path) -> tuple[Weights, list[dict[str, Any]]]:
    """What the runtime reads back of what a packer writes."""
    path = folder / "weights.bin"
    records = packer.write(path)
    tensors = {record["name"]: Stored(**{**record, "shape": tuple(record["shape"])}) for record in records}
    return Weights(path, FileFact(sha256_file(path), path.stat().st_size), tensors), records


def read(weights: Weights, packer: Packer, entry: int) -> dict[str, Array]:
    """An entry's weights as the runtime cuts them."""
    found = {}
    for item in packer.initializers(entry):
        ranges = item["ranges"]
        runs = None if ranges is None else tuple(None if r is None else tuple(map(tuple, r)) for r in ranges)
        found[item["name"]] = weights.cut(Initializer(item["name"], item["tensor"], runs))
    return found


FULL: dict[str, Array] = {"w": np.arange(48, dtype=np.float32).reshape(8, 6), "b": np.arange(8, dtype=np.int64)}


def test_slices_are_stored_once_and_read_back_exactly(tmp_path: Path) -> None:
    packer = Packer(FULL)
    kept: list[Ranges] = [[[[0, 4]], [[0, 6]]], [[[0, 8]], None], [[[6, 8], [1, 3]], [[2, 5]]]]
    wanted = [{"w": cut(FULL["w"], ranges)} for ranges in kept]
    for values, ranges in zip(wanted, kept):
        packer.add(values, {"w": ("w", ranges)})
    assert packer.apart == 0
    weights, records = stored(packer, tmp_path)
    assert [record["name"] for record in records] == ["w"]
    assert (tmp_path / "weights.bin").stat().st_size == FULL["w"].nbytes
    for entry, values in enumerate(wanted):
        np.testing.assert_array_equal(read(weights, packer, entry)["w"], values["w"])
    assert wanted[2]["w"][:, 0].tolist() == [38, 44, 8, 14]


def test_only_the_union_of_what_is_needed_is_kept(tmp_path: Path) -> None:
    packer = Packer(FULL)
    ranges: list[Ranges] = [[[[1, 3]], None], [[[5, 6]], [[0, 3]]]]
    for each in ranges:
        packer.add({"w": cut(FULL["w"], each)}, {"w": ("w", each)})
    weights, records = stored(packer, tmp_path)
    assert records[0]["shape"] == [3, 6]
    for entry, each in enumerate(ranges):
        np.testing.assert_array_equal(read(weights, packer, entry)["w"], cut(FULL["w"], each))


def test_what_is_no_exact_slice_is_stored_apart(tmp_path: Path) -> None:
    packer = Packer(FULL)
    moved = FULL["w"][:4].copy()
    moved[0, 0] = np.nextafter(np.float32(moved[0, 0]), np.float32(1))
    negative_zero = np.where(FULL["b"][:0] == 0, 0, 0)
    packer.add({"w": moved, "b": FULL["b"]}, {"w": ("w", [[[0, 4]], None]), "b": ("b", None)})
    packer.add({"w": FULL["w"][:4], "b": negative_zero}, {"w": ("w", [[[0, 4]], None]), "b": ("b", [[[0, 8]]])})
    assert packer.apart == 2
    weights, records = stored(packer, tmp_path)
    assert sorted(record["name"] for record in records) == ["b", "b@1", "w", "w@1"]
    np.testing.assert_array_equal(read(weights, packer, 0)["w"], moved)
    np.testing.assert_array_equal(read(weights, packer, 1)["w"], FULL["w"][:4])


def test_equal_tensors_of_their_own_are_stored_once(tmp_path: Path) -> None:
    packer = Packer({})
    for _ in range(3):
        packer.add({"x": np.ones(5, dtype=np.float32)}, {})
    _, records = stored(packer, tmp_path)
    assert [record["name"] for record in records] == ["x"]


def test_tensors_are_aligned_and_scalars_survive(tmp_path: Path) -> None:
    packer = Packer({})
    packer.add({"s": np.array(3, dtype=np.float32), "t": np.ones((3, 1), dtype=np.uint8), "u": np.zeros((0, 4))}, {})
    weights, records = stored(packer, tmp_path)
    assert all(record["offset"] % ALIGNMENT == 0 for record in records)
    assert weights.tensor("s").shape == ()
    assert float(weights.tensor("s")) == 3
    assert weights.tensor("u").shape == (0, 4)


def test_dtypes_without_a_place_in_artifacts_are_refused() -> None:
    with pytest.raises(PliantError, match="weight 'c' is complex64"):
        Packer({}).add({"c": np.zeros(2, dtype=np.complex64)}, {})


def test_ranges_must_fit_the_axes() -> None:
    with pytest.raises(ValueError, match="1 ranges for an array of 2 axes"):
        cut(FULL["w"], [None])
