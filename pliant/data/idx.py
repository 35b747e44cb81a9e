"""The idx format of MNIST: two zero bytes, type, number of axes, big-endian sizes, values; plain or gzip."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Split -> names of its images and labels, with or without .gz."""


def read_idx(path: str | Path) -> NDArray[Any]:
    """The array in an idx file, in native byte order.

    Raises:
        PliantError: no idx file, cut short, or not gzip although it is called .gz.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise PliantError(f"cannot be read ({error})", where=str(path), fix="download it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or data[3] == 0:
        raise PliantError(f"no idx file (it starts with {data[:4].hex()})", where=str(path))
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise PliantError("cut short in its header", where=str(path), fix="download it again")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(_TYPES[data[2]])
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) - start != wanted:
        problem = f"{len(data) - start} bytes of values, but shape {shape} needs {wanted}"
        raise PliantError(problem, where=str(path), fix="download it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def beside(folder: Path, stem: str) -> Path | None:
    """The file `stem` or `stem`.gz in a folder, or None."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def has_idx(folder: Path) -> bool:
    """Whether a folder holds the training images of a data set in idx files."""
    return beside(folder, FILES["train"][0]) is not None


def read_idx_folder(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Images and labels by split ("train", and "test" where it is there).

    Raises:
        PliantError: a file is missing or damaged.
    """
    x, y = {}, {}
    for split, stems in FILES.items():
        found = [beside(folder, stem) for stem in stems]
        if split == "test" and found == [None, None]:
            continue
        for stem, path in zip(stems, found, strict=True):
            if path is None:
                raise PliantError(f"{stem} (or {stem}.gz) is missing", where=str(folder))
        x[split], y[split] = (read_idx(path) for path in found if path is not None)
    return x, y


def read_idx_pair(images: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """An images file and the labels file beside it (`images` -> `labels`, `idx3` -> `idx1` in its name).

    Raises:
        PliantError: no such labels file, or a damaged one.
    """
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = beside(images.parent, stem)
    if labels is None or labels == images:
        raise PliantError(
            f"no labels file {stem} beside it", where=str(images), fix="give the folder or the images file"
        )
    return read_idx(images), read_idx(labels)
