import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pliant.data
from pliant.core import PliantError
from pliant.data import Dataset, apply, load

FILES = {
    "fashion-mnist": "fashion_mnist/train-images-idx3-ubyte.gz",
    "mnist": "mnist/train-images-idx3-ubyte.gz",
    "cifar10-jpeg": "cifar10/cifar10_jpeg_60k.npz",
    "tiny-shakespeare": "text/tinyshakespeare.txt",
    "japanese-vowels": "timeseries/JapaneseVowels_eq.npz",
    **{name: f"tabular/{name}.npz" for name in ("concrete", "energy", "kin8nm", "power-plant", "yacht")},
}


def test_names() -> None:
    assert set(pliant.data.names()) == {"digits", "tiny-text", *FILES}


def test_digits() -> None:
    data = load("digits")
    assert data.sizes == {"train": 1437, "val": 180, "test": 180}
    assert (data.shape, data.outputs, data.task) == ((1, 8, 8), 10, "classify")
    assert abs(float(data.train.inputs.mean())) < 1e-4
    assert abs(float(data.train.inputs.std()) - 1) < 1e-3
    assert data.preprocessing["shape"] == [1, 8, 8]
    assert data.preprocessing["scale"] == 16.0


def test_digits_are_deterministic_and_splits_disjoint() -> None:
    one, two = load("digits", seed=3), load("Digits", seed=3)
    assert torch.equal(one.train.inputs, two.train.inputs)
    rows = [tuple(row.flatten().tolist()) for part in (one.train, one.val, one.test) for row in part.inputs]
    assert len(set(rows)) == 1797


def test_digits_can_be_learned() -> None:
    from sklearn.linear_model import LogisticRegression

    data = load("digits", limit=500)
    model = LogisticRegression(max_iter=200).fit(data.train.inputs.flatten(1).numpy(), data.train.targets.numpy())
    assert model.score(data.val.inputs.flatten(1).numpy(), data.val.targets.numpy()) > 0.88


def test_limit() -> None:
    data = load("digits", limit=50)
    assert data.sizes == {"train": 50, "val": 50, "test": 50}
    assert data.outputs == 10
    assert data.notes[-1] == "at most 50 samples per split, drawn with seed 0"
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load("digits", limit=0)


@pytest.mark.parametrize("name", FILES)
def test_named_data_without_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIANT_DATA", raising=False)
    with pytest.raises(
        PliantError, match=f"data set '{name}' is not shipped and PLIANT_DATA is not set. set PLIANT_DATA"
    ):
        load(name)


@pytest.mark.parametrize("name", FILES)
def test_named_data_with_missing_files(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    with pytest.raises(PliantError, match=f"{FILES[name].removesuffix('.gz')} is missing"):
        load(name)


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("fashion-mnist", (1, 28, 28), 10),
        ("mnist", (1, 28, 28), 10),
        ("cifar10-jpeg", (3, 32, 32), 10),
        ("tiny-shakespeare", (64,), 65),
        ("japanese-vowels", (25, 12), 9),
        ("concrete", (8,), 1),
        ("power-plant", (4,), 1),
    ],
)
def test_named_data(name: str, shape: tuple[int, ...], outputs: int) -> None:
    root = os.environ.get("PLIANT_DATA")
    if root is None or not os.path.isfile(os.path.join(root, FILES[name])):
        pytest.skip(f"{FILES[name]} is not in $PLIANT_DATA")
    if name == "cifar10-jpeg":
        pytest.importorskip("PIL", reason="Pillow is not installed")
    data = load(name, limit=100)
    assert (data.shape, data.outputs) == (shape, outputs)
    assert data.sizes["train"] == 100
    assert len(data.test) == 100


def test_targets_of_regression_tables_are_standardised_and_the_notes_say_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (60, 8)).astype(np.float32), rng.normal(40, 9, 60).astype(np.float32)
    masks = np.zeros((2, 60), dtype=bool)
    masks[0, ::4] = masks[1, 1::4] = True
    (tmp_path / "tabular").mkdir()
    save(tmp_path / "tabular/concrete.npz", x=x, y=y, test_mask=masks)
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    data = load("concrete")
    assert (data.task, data.sizes) == ("regress", {"train": 41, "val": 4, "test": 15})
    mean, std = y[~masks[0]].mean(), y[~masks[0]].std()
    assert f"times {std:.6g}, plus {mean:.6g}" in data.notes[0]
    assert torch.allclose(data.test.targets[:, 0] * std + mean, torch.from_numpy(y[::4]), atol=1e-3)


def test_vowels_come_as_steps_of_coefficients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(18, 12, 25)).astype(np.float32), np.arange(18) % 9
    (tmp_path / "timeseries").mkdir()
    save(tmp_path / "timeseries/JapaneseVowels_eq.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    data = load("japanese-vowels")
    assert torch.equal(data.test.inputs, torch.from_numpy(x[:9]).transpose(1, 2))


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="no data set or path 'digit'; data sets are digits, fashion-mnist"):
        load("digit")


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pliant reads .npz, .csv"):
        load(tmp_path / "a.parquet")


def save(path: Path, **arrays: Any) -> Any:
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(3, 2, (50, 4)), np.arange(50) % 2
    data = load(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9], class_names=["no", "yes"]))
    assert data.sizes == {"train": 45, "val": 5, "test": 9}
    assert (data.name, data.classes) == ("a", ("no", "yes"))
    assert torch.allclose(data.train.inputs.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.equal(apply(torch.from_numpy(x[:9]), data.preprocessing), data.test.inputs)


def test_npz_with_x_and_y_alone_by_dataset_of(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (30, 5, 5), dtype=np.uint8)
    data = Dataset.of(str(save(tmp_path / "a.npz", x=x, y=np.arange(30) / 7)), val_share=0.2)
    assert (data.task, data.shape, data.sizes["val"]) == ("regress", (1, 5, 5), 6)


def test_bad_npz(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match=r"cannot be read as npz without pickles .*allow_pickle"):
        load(save(tmp_path / "o.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2)))
    with pytest.raises(PliantError, match=r"holds features, y. store x_train and y_train"):
        load(save(tmp_path / "k.npz", features=np.zeros((3, 2)), y=np.arange(3)))
    with pytest.raises(PliantError, match="x_train without y_train"):
        load(save(tmp_path / "x.npz", x=np.zeros((3, 2))))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(PliantError, match="cannot be read as npz"):
        load(tmp_path / "broken.npz")
    with pytest.raises(PliantError, match=r"y_train: label 7 at index \[1\]. labels must be 0..1"):
        load(save(tmp_path / "c.npz", x=np.zeros((3, 2)), y=np.array([0, 7, 1]), class_names=np.array(["a", "b"])))
