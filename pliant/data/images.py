"""Image files, which need Pillow: folders of images by class, and the JPEG copy of CIFAR-10."""

import io
import zipfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
SPLITS = ("train", "val", "test")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pillow() -> ModuleType:
    """The module PIL.Image. Raises `PliantError` with the install line where Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise PliantError("reading image files needs Pillow", fix='pip install "pliant[images]"') from error
    return Image


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def read_image_folder(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], tuple[str, ...]]:
    """Images by class sub-folder, or by split and class (FOLDER/train/CLASS/...; val and test likewise).

    Returns:
        uint8 images [n, H, W] (all grey) or [n, H, W, 3] by split, int64 labels by split, class names in sorted order.

    Raises:
        PliantError: Pillow is missing, there are no images, an image is damaged, or sizes differ.
    """
    names = {path.name for path in _subfolders(folder)}
    roots = {split: folder / split for split in SPLITS if split in names} if "train" in names else {"train": folder}
    classes = tuple(path.name for path in _subfolders(roots["train"]) if _image_files(path))
    if not classes:
        fix = "give a folder with one sub-folder of images per class"
        raise PliantError("no images in class sub-folders", where=str(folder), fix=fix)
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, root in roots.items():
        for path in _subfolders(root):
            if path.name not in classes and _image_files(path):
                raise PliantError(f"class {path.name!r} does not occur in train", where=str(root))
        files[split] = [
            (path, label)
            for label, name in enumerate(classes)
            if (root / name).is_dir()
            for path in _image_files(root / name)
        ]
        if not files[split]:
            raise PliantError("no images in class sub-folders", where=str(root))
    grey = all(_mode(path) for pairs in files.values() for path, _ in pairs)
    x = {split: _stack([path for path, _ in pairs], "L" if grey else "RGB") for split, pairs in files.items()}
    y = {split: np.array([label for _, label in pairs], dtype=np.int64) for split, pairs in files.items()}
    return x, y, classes


def _mode(path: Path) -> bool:
    """Whether an image is grey."""
    with _opened(path) as image:
        return image.mode in ("L", "1")


def _opened(path: Path) -> Any:
    try:
        return pillow().open(path)
    except OSError as error:
        raise PliantError(f"no readable image ({error})", where=str(path), fix="remove or replace it") from error


def _stack(paths: list[Path], mode: str) -> NDArray[Any]:
    arrays: list[NDArray[Any]] = []
    for path in paths:
        with _opened(path) as image:
            try:
                array = np.asarray(image.convert(mode), dtype=np.uint8)
            except OSError as error:
                raise PliantError(f"damaged image ({error})", where=str(path), fix="remove or replace it") from error
        if arrays and array.shape != arrays[0].shape:
            problem = f"{array.shape[1]} x {array.shape[0]} pixels, but {paths[0]} has {arrays[0].shape[1]} x "
            raise PliantError(problem + str(arrays[0].shape[0]), where=str(path), fix="resize all images to one size")
        arrays.append(array)
    return np.stack(arrays)


def read_cifar10_jpeg(path: Path, limit: int | None) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """CIFAR-10 from a JPEG-compressed copy: uint8 [n, 32, 32, 3] and labels by split.

    Not pixel-exact (JPEG at about quality 75): compare figures with others on this copy, never with published ones.

    Args:
        path: npz with jpeg_train, offset_train, y_train and the same for test; files concatenated, offsets [n + 1].
        limit: images decoded per split; every prefix holds all classes alike.

    Raises:
        PliantError: Pillow is missing, or the file is not such a copy.
    """
    image, x, y = pillow(), {}, {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            for split in ("train", "test"):
                data, offsets = stored[f"jpeg_{split}"].tobytes(), stored[f"offset_{split}"][: limit and limit + 1]
                pairs = pairwise(offsets.tolist())
                x[split] = np.stack([np.asarray(image.open(io.BytesIO(data[a:b]))) for a, b in pairs])
                y[split] = stored[f"y_{split}"][: len(x[split])].astype(np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise PliantError(f"no JPEG copy of CIFAR-10 ({error})", where=str(path), fix="download it again") from error
    return x, y
