import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.core import PliantError
from pliant.data import load
from pliant.data.images import read_cifar10_jpeg

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def picture(path: Path, value: int = 0, *, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 255 - value, 7)).save(path)


def by_class(root: Path, mode: str = "RGB") -> Any:
    for index in range(10):
        picture(root / "dog" / f"{index}.png", index, mode=mode)
        picture(root / "cat" / f"{index}.png", 200 + index, mode=mode)
    return root


def test_class_folders(tmp_path: Path) -> None:
    data = load(by_class(tmp_path / "pets"))
    assert (data.name, data.classes, data.shape) == ("pets", ("cat", "dog"), (3, 5, 6))
    assert data.sizes == {"train": 16, "val": 2, "test": 2}
    assert ((data.train.inputs[:, 0, 0, 0] < 0).long() == data.train.targets).all()  # dogs are the dark ones
    assert data.preprocessing["layout"] == "NHWC"


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    assert load(by_class(tmp_path, "L")).shape == (1, 5, 6)
    picture(tmp_path / "cat" / "coloured.png")
    assert load(tmp_path).shape == (3, 5, 6)


def test_split_folders(tmp_path: Path) -> None:
    by_class(tmp_path / "train")
    picture(tmp_path / "test" / "dog" / "a.jpg", 3)
    data = load(tmp_path)
    assert data.sizes == {"train": 18, "val": 2, "test": 1}
    assert data.test.targets.tolist() == [1]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    by_class(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    assert sum(load(tmp_path).sizes.values()) == 20


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match="no images in class sub-folders"):
        load(tmp_path)
    by_class(tmp_path / "a")
    picture(tmp_path / "a" / "dog" / "wide.png", size=(7, 5))
    with pytest.raises(PliantError, match=r"wide.png: 7 x 5 pixels, but .* has 6 x 5. resize"):
        load(tmp_path / "a")
    by_class(tmp_path / "b")
    (tmp_path / "b" / "dog" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(PliantError, match=r"broken.png: no readable image"):
        load(tmp_path / "b")
    by_class(tmp_path / "c" / "train")
    picture(tmp_path / "c" / "test" / "cow" / "a.png")
    with pytest.raises(PliantError, match="class 'cow' does not occur in train"):
        load(tmp_path / "c")


def test_cut_image(tmp_path: Path) -> None:
    by_class(tmp_path)
    path = tmp_path / "cat" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PliantError, match=r"0.png: (damaged image|no readable image)"):
        load(tmp_path)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_class(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PliantError, match=r'reading image files needs Pillow. pip install "pliant\[images\]"'):
        load(tmp_path)


def jpegs(n: int) -> Any:
    parts = []
    for index in range(n):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (index, index, index)).save(file, "JPEG")
        parts.append(np.frombuffer(file.getvalue(), np.uint8))
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def test_cifar10_jpeg_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data, offsets), y = jpegs(40), (np.arange(40) % 10).astype(np.uint8)
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / "cifar10_jpeg_60k.npz"
    arrays = {"offset_train": offsets, "y_train": y, "offset_test": offsets, "y_test": y}
    np.savez(path, jpeg_train=data, jpeg_test=data, **arrays)
    x, labels = read_cifar10_jpeg(path, 25)
    assert x["train"].shape == (25, 32, 32, 3)
    assert labels["test"].tolist() == y[:25].tolist()
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    limited = load("cifar10-jpeg", limit=20)
    assert limited.sizes["train"] == 20
    assert "do not compare" in limited.notes[0]
    assert limited.classes[2] == "bird"
    assert torch.isfinite(limited.train.inputs).all()
    np.savez(path, jpeg_train=data)
    with pytest.raises(PliantError, match="no JPEG copy of CIFAR-10"):
        load("cifar10-jpeg")
