import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.core import PliantError
from pliant.data import load
from pliant.data.idx import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: Any) -> Any:
    code = CODES[f"{array.dtype.kind}{array.dtype.itemsize}"]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", CODES)
def test_every_type(tmp_path: Path, kind: str) -> None:
    array = np.array([[1, 2, 3], [100, 5, 6]], dtype=kind)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    found = read_idx(tmp_path / "a")
    assert found.dtype == array.dtype
    assert (found == array).all()


def folder(tmp_path: Path, *, test: bool = True, packed: bool = True) -> Any:
    x, y = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8), (np.arange(20) % 2).astype(np.uint8)
    for stem, array in (("images-idx3-ubyte", x), ("labels-idx1-ubyte", y)):
        for prefix in ("train", "t10k") if test else ("train",):
            data = idx_bytes(array)
            (tmp_path / f"{prefix}-{stem}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return tmp_path


@pytest.mark.parametrize("packed", [True, False])
def test_folder(tmp_path: Path, packed: bool) -> None:
    data = load(folder(tmp_path, packed=packed))
    assert data.sizes == {"train": 18, "val": 2, "test": 20}
    assert data.shape == (1, 4, 4)


def test_folder_without_test(tmp_path: Path) -> None:
    assert load(folder(tmp_path, test=False)).sizes == {"train": 16, "val": 2, "test": 2}


def test_single_file_finds_its_labels(tmp_path: Path) -> None:
    data = load(folder(tmp_path) / "t10k-images-idx3-ubyte.gz")
    assert sum(data.sizes.values()) == 20
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(PliantError, match="no labels file t10k-labels-idx1-ubyte beside it"):
        load(tmp_path / "t10k-images-idx3-ubyte.gz")


def test_missing_labels(tmp_path: Path) -> None:
    (folder(tmp_path) / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(PliantError, match=r"train-labels-idx1-ubyte \(or .*.gz\) is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], r"13 bytes of values, but shape \(4, 4\) needs 16"),
        (lambda data: data[:6], "cut short in its header"),
        (lambda data: b"\x89PNG" + data[4:], "no idx file"),
        (lambda data: data[:2], "no idx file"),
        (lambda data: b"", "no idx file"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Any, message: str) -> None:
    (tmp_path / "a").write_bytes(damage(idx_bytes(np.zeros((4, 4), dtype=np.uint8))))
    with pytest.raises(PliantError, match=message):
        read_idx(tmp_path / "a")


def test_damaged_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"no gzip")
    with pytest.raises(PliantError, match="cannot be read"):
        read_idx(tmp_path / "a.gz")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\0" * 999)[:-9])
    with pytest.raises(PliantError, match="cannot be read"):
        read_idx(tmp_path / "b.gz")
