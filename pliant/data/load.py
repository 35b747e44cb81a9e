"""Data sets by name or path."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError
from pliant.data import idx, images, tables
from pliant.data.build import Cut, build, pair_up
from pliant.data.dataset import Dataset
from pliant.data.text import read_text, text_dataset
from pliant.data.tiny_text import TEXT

VARIABLE = "PLIANT_DATA"
FASHION = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = tuple("0123456789")
UCI = ("concrete", "energy", "kin8nm", "power-plant", "yacht")


@dataclass(frozen=True)
class _Options:
    cut: Cut
    context: int
    target: str | int | None


def data_folder(name: str, *files: str) -> Path:
    """The folder in $PLIANT_DATA that holds `files`; a file may be there with .gz added.

    Raises:
        PliantError: the variable is not set, or a file is missing.
    """
    root = os.environ.get(VARIABLE)
    wanted = ", ".join(files)
    if not root:
        fix = f"set {VARIABLE} to a folder that holds {wanted}"
        raise PliantError(f"data set {name!r} is not shipped and {VARIABLE} is not set", fix=fix)
    for file in files:
        if not any((Path(root) / form).is_file() for form in (file, f"{file}.gz")):
            fix = f"put {wanted} there, or set {VARIABLE} to the folder that holds them"
            raise PliantError(f"{file} is missing, which data set {name!r} needs", where=f"{VARIABLE}={root}", fix=fix)
    return Path(root)


def _digits(options: _Options) -> Dataset:
    """8 x 8 grey images of digits that scikit-learn ships (UCI optical recognition, test part), values 0..16."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = pixels.reshape(-1, 1, 8, 8).astype(np.float32)
    return build("digits", {"train": x}, {"train": labels}, options.cut, classes=DIGITS, normalise=True, scale=16.0)


def _idx_named(name: str, folder: str, classes: tuple[str, ...]) -> Callable[[_Options], Dataset]:
    def make(options: _Options) -> Dataset:
        root = data_folder(name, *(f"{folder}/{stem}" for stems in idx.FILES.values() for stem in stems))
        x, y = idx.read_idx_folder(root / folder)
        return build(name, x, y, options.cut, classes=classes)

    return make


def _cifar10_jpeg(options: _Options) -> Dataset:
    """Not pixel-exact: never compare with published CIFAR-10 figures."""
    file = "cifar10/cifar10_jpeg_60k.npz"
    root = data_folder("cifar10-jpeg", file)
    cut = options.cut
    needed = None if cut.limit is None else int(cut.limit / (1 - cut.share)) + 2  # so that the cut leaves `limit`
    x, y = images.read_cifar10_jpeg(root / file, needed)
    notes = ("JPEG copy of CIFAR-10, not pixel-exact: do not compare with published figures",)
    return build("cifar10-jpeg", x, y, cut, classes=images.CIFAR10, notes=notes)


def _shakespeare(options: _Options) -> Dataset:
    file = "text/tinyshakespeare.txt"
    text = read_text(data_folder("tiny-shakespeare", file) / file)
    return text_dataset("tiny-shakespeare", text, context=options.context, limit=options.cut.limit)


def _japanese_vowels(options: _Options) -> Dataset:
    """Nine speakers by one vowel, in 25 steps with 12 coefficients each (UEA archive, lengths made equal)."""
    file = "timeseries/JapaneseVowels_eq.npz"
    x, y = pair_up(read_npz(data_folder("japanese-vowels", file) / file), file)
    x = {split: value.transpose(0, 2, 1) for split, value in x.items()}
    return build("japanese-vowels", x, y, options.cut, classes=tuple("123456789"))


def _uci(name: str) -> Callable[[_Options], Dataset]:
    """A regression table; its first published split is the test split. Targets are standardised by all other rows."""

    def make(options: _Options) -> Dataset:
        file = f"tabular/{name}.npz"
        stored = read_npz(data_folder(name, file) / file)
        test = stored["test_mask"][0]
        y, mean, std = stored["y"], stored["y"][~test].mean(), stored["y"][~test].std()
        notes = (f"targets are standardised: times {std:.6g}, plus {mean:.6g} gives them in their own units",)
        y = (y - mean) / std
        inputs = {"train": stored["x"][~test], "test": stored["x"][test]}
        targets = {"train": y[~test], "test": y[test]}
        return build(name, inputs, targets, options.cut, normalise=True, notes=notes)

    return make


def _tiny_text(options: _Options) -> Dataset:
    return text_dataset("tiny-text", TEXT, context=options.context, limit=options.cut.limit)


_NAMED: dict[str, Callable[[_Options], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _idx_named("fashion-mnist", "fashion_mnist", FASHION),
    "mnist": _idx_named("mnist", "mnist", DIGITS),
    "cifar10-jpeg": _cifar10_jpeg,
    "japanese-vowels": _japanese_vowels,
    **{name: _uci(name) for name in UCI},
    "tiny-shakespeare": _shakespeare,
    "tiny-text": _tiny_text,
}


def names() -> tuple[str, ...]:
    """Names that `load` knows; digits and tiny-text are shipped, the others are read from $PLIANT_DATA."""
    return tuple(_NAMED)


def load(
    name_or_path: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    val_share: float = 0.1,
    context: int = 64,
    target: str | int | None = None,
) -> Dataset:
    """A data set by name (`names()`) or path.

    Paths: .npz (x_train, y_train and optionally x_val, y_val, x_test, y_test, or x, y; class_names), .csv or .tsv, .txt
    (characters), an idx images file with its labels beside it, a folder with MNIST's idx files, or a folder of images
    by class. Tables (float, two axes) and uint8 images are normalised by mean and standard deviation of train; other
    float arrays are taken as they are. A name wins over a path; write ./digits for a folder called digits.

    Args:
        name_or_path: which one.
        seed: of the cut of missing splits and of the limit.
        limit: most samples per split.
        val_share: share of the samples for each missing split.
        context: tokens per window (texts).
        target: name or index of the target column (csv; the last by default).

    Raises:
        ValueError: neither a name nor a path, or an argument out of range.
        PliantError: files that are missing, damaged or hold bad data.
    """
    options = _Options(Cut(seed, val_share, limit), context, target)
    wanted = str(name_or_path).lower().replace("_", "-")
    if isinstance(name_or_path, str) and wanted in _NAMED:
        return _NAMED[wanted](options)
    path = Path(name_or_path)
    if path.is_dir():
        return _load_folder(path, options)
    if path.is_file():
        return _load_file(path, options)
    raise ValueError(f"no data set or path {str(name_or_path)!r}; data sets are {', '.join(names())}")


def _load_folder(path: Path, options: _Options) -> Dataset:
    if idx.has_idx(path):
        x, y = idx.read_idx_folder(path)
        return build(path.resolve().name, x, y, options.cut)
    x, y, classes = images.read_image_folder(path)
    return build(path.resolve().name, x, y, options.cut, classes=classes)


def _load_file(path: Path, options: _Options) -> Dataset:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _load_npz(path, options.cut)
    if suffix in (".csv", ".tsv"):
        return _load_csv(path, options)
    if suffix == ".txt":
        return text_dataset(path.stem, read_text(path), context=options.context, limit=options.cut.limit)
    if "idx" in path.name:
        images_, labels = idx.read_idx_pair(path)
        return build(path.stem, {"train": images_}, {"train": labels}, options.cut)
    kinds = ".npz, .csv, .tsv, .txt, idx files, or a folder of images by class"
    raise ValueError(f"{path}: cannot tell what kind of data this is; pliant reads {kinds}")


def _load_csv(path: Path, options: _Options) -> Dataset:
    table = tables.read_csv(path, target=options.target)
    classes = table.classes or None
    x, y = {"train": table.x}, {"train": table.y}
    notes = (*table.notes, f"features in order: {', '.join(table.columns)}")
    return build(path.stem, x, y, options.cut, classes=classes, normalise=True, notes=notes)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in an npz file. Raises `PliantError` when it cannot be read without pickles."""
    try:
        # numpy leaves a file open that it opened itself and cannot read
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PliantError(f"cannot be read as npz without pickles ({error})", where=str(path)) from error


def _load_npz(path: Path, cut: Cut) -> Dataset:
    arrays = read_npz(path)
    if "x" in arrays and "x_train" not in arrays:
        arrays = {{"x": "x_train", "y": "y_train"}.get(key, key): value for key, value in arrays.items()}
    if "x_train" not in arrays:
        keys = ", ".join(arrays) or "nothing"
        raise PliantError(f"holds {keys}", where=str(path), fix="store x_train and y_train, or x and y")
    x, y = pair_up(arrays, str(path))
    named = arrays.get("class_names")
    classes = tuple(str(name) for name in named) if named is not None and named.dtype.kind in "US" else None
    return build(path.stem, x, y, cut, classes=classes, normalise=arrays["x_train"].ndim == 2)
