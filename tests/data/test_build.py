from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pliant.core import PliantError
from pliant.data import Dataset

RNG = np.random.default_rng(0)


def arrays(n: int = 40, d: int = 3, classes: int = 4) -> Any:
    return RNG.normal(size=(n, d)), np.arange(n) % classes


def test_a_dataset_is_returned_as_it_is() -> None:
    data = Dataset.of(arrays())
    assert Dataset.of(data) is data


def test_pair_of_arrays_is_cut() -> None:
    x, y = arrays()
    data = Dataset.of((x, y))
    assert data.sizes == {"train": 32, "val": 4, "test": 4}
    assert (data.task, data.classes, data.shape) == ("classify", ("0", "1", "2", "3"), (3,))
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.dtype == torch.int64
    assert data.notes == ("test: 4 of 40 samples, cut with seed 0", "val: 4 of 40 samples, cut with seed 0")
    rows = torch.cat([data.train.inputs, data.val.inputs, data.test.inputs])
    assert torch.equal(rows.sort(0).values, torch.from_numpy(x).float().sort(0).values)


def test_the_cut_depends_on_the_seed_alone() -> None:
    x, y = arrays()
    one, two, other = Dataset.of((x, y), seed=1), Dataset.of((x, y), seed=1), Dataset.of((x, y), seed=2)
    assert torch.equal(one.val.inputs, two.val.inputs)
    assert not torch.equal(one.val.inputs, other.val.inputs)


def test_given_splits_are_kept() -> None:
    (x, y), (u, v) = arrays(40), arrays(8)
    data = Dataset.of((x, y, u, v), val_share=0.25)
    assert data.sizes == {"train": 30, "val": 10, "test": 8}
    assert torch.equal(data.test.inputs, torch.from_numpy(u).float())
    whole = Dataset.of({"x_train": x, "y_train": y, "x_val": u, "y_val": v, "x_test": u, "y_test": v})
    assert whole.sizes == {"train": 40, "val": 8, "test": 8}
    assert whole.notes == ()


def test_callers_arrays_are_not_shared() -> None:
    x, y = arrays()
    x = x.astype(np.float32)
    data = Dataset.of((x, y, x[:4], y[:4]))
    data.test.inputs.zero_()
    assert not (x[:4] == 0).any()


def test_float_targets_regress_in_columns() -> None:
    x, _ = arrays()
    data = Dataset.of((x, x[:, 0]))
    assert (data.task, data.loss, data.metric.name, data.classes) == ("regress", "mse", "mse", ())
    assert data.train.targets.shape == (32, 1)
    assert data.outputs == 1
    assert Dataset.of((x, x[:, :2])).outputs == 2


def test_float_images_as_targets_are_dense() -> None:
    images = RNG.normal(size=(20, 1, 4, 6)).astype(np.float32)
    data = Dataset.of((images, np.concatenate([images, images], axis=1)))
    assert (data.task, data.loss, data.metric.name, data.outputs) == ("dense", "mse", "mse", 2)
    raw = RNG.integers(0, 255, size=(20, 5, 6, 3)).astype(np.uint8)
    images = RNG.normal(size=(20, 1, 5, 6)).astype(np.float32)
    assert Dataset.of((raw, images)).task == "dense"
    assert Dataset.of((raw[..., 0], images)).task == "dense"
    other = Dataset.of((images, images[:, :, :2]))
    assert (other.task, other.outputs) == ("regress", 12)


def test_string_bool_and_column_labels() -> None:
    x, y = arrays()
    named = Dataset.of((x, np.array(["cat", "dog", "ant", "bee"])[y]))
    assert named.classes == ("ant", "bee", "cat", "dog")
    listed = Dataset.of((x, [["cat", "dog"][i % 2] for i in y]))
    assert listed.classes == ("cat", "dog")
    assert Dataset.of((x, y % 2 == 0)).classes == ("0", "1")
    assert Dataset.of((x, y[:, None])).train.targets.shape == (32,)


def test_dense_and_next_token() -> None:
    images = RNG.normal(size=(20, 1, 4, 4)).astype(np.float32)
    dense = Dataset.of((images, RNG.integers(0, 3, (20, 4, 4))))
    assert (dense.task, dense.outputs, dense.train.targets.shape) == ("dense", 3, (16, 4, 4))
    tokens = RNG.integers(0, 9, (20, 7))
    text = Dataset.of((tokens, np.roll(tokens, -1, axis=1)))
    assert (text.task, text.outputs) == ("next_token", 9)
    assert text.train.inputs.dtype == torch.int64


def test_structured_inputs() -> None:
    x, y = arrays()
    pair = Dataset.of(((x, 2 * x), y))
    assert pair.train.inputs[1].shape == (32, 3)
    assert torch.allclose(pair.train.inputs[1], 2 * pair.train.inputs[0])
    named = Dataset.of(({"a": x, "b": x}, y))
    assert set(named.example()) == {"a", "b"}
    assert named.preprocessing == {}
    bytes_ = Dataset.of(({"a": x, "b": np.zeros((40, 5), dtype=np.uint8)}, y))
    assert [info["shape"] for info in bytes_.preprocessing["inputs"]] == [[3], [5]]


def test_torch_sources() -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    source = TensorDataset(x, y)
    for given in (source, DataLoader(source, batch_size=6)):
        data = Dataset.of(given)
        rows = torch.cat([data.train.inputs, data.val.inputs, data.test.inputs])
        assert torch.equal(rows.sort(0).values, x.sort(0).values)
        assert data.classes == ("0", "1")
    pair = Dataset.of((source, TensorDataset(x[:5], y[:5])))
    assert torch.equal(pair.test.inputs, x[:5])


class Stream(IterableDataset[Any]):
    classes = ("even", "odd", "never")

    def __iter__(self) -> Any:
        return ((np.full(2, i, dtype=np.float32), i % 2) for i in range(20))


def test_iterable_source_with_class_names() -> None:
    data = Dataset.of(Stream())
    assert data.classes == ("even", "odd", "never")
    assert torch.equal(data.train.inputs[:, 0].long() % 2, data.train.targets)


class Images(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
        return Image.new("RGB", (6, 5), (index, 0, 255)), index % 2


def test_pillow_samples_become_images() -> None:
    data = Dataset.of(Images(torch.zeros(20)))
    assert data.shape == (3, 5, 6)
    assert data.preprocessing["layout"] == "NHWC"


@pytest.mark.parametrize("source", [5, None, (1,), (1, 2, 3), TensorDataset(torch.zeros(4, 2))])
def test_unknown_sources(source: Any) -> None:
    with pytest.raises(TypeError, match=r"data must be a Dataset|must yield \(input, target\)"):
        Dataset.of(source)


def test_unknown_dict_keys() -> None:
    with pytest.raises(ValueError, match=r"keys x_test, .* got x_train, labels"):
        Dataset.of({"x_train": [[0.0]], "labels": [0]})
    with pytest.raises(PliantError, match="x_test without y_test"):
        Dataset.of({"x_train": [[0.0]], "y_train": [0], "x_test": [[0.0]]})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, -0.1])
def test_bad_share(share: float) -> None:
    with pytest.raises(ValueError, match="val_share must be in"):
        Dataset.of(arrays(), val_share=share)


def damaged(x_change: Any = None, y_change: Any = None) -> Any:
    x, y = arrays()
    return (x if x_change is None else x_change(x)), (y if y_change is None else y_change(y))


def with_value(array: Any, index: Any, value: float) -> Any:
    array = array.copy()
    array[index] = value
    return array


BAD = {
    "nan": (lambda x: with_value(x, (5, 2), np.nan), None, r"x_train: nan at index \[5, 2\] \(1 values in all"),
    "infinity": (lambda x: with_value(x, (0, 1), -np.inf), None, r"-inf at index \[0, 1\]"),
    "objects": (lambda x: x.astype(object), None, "x_train: Python objects instead of numbers"),
    "strings": (lambda x: x.astype(str), None, "instead of numbers"),
    "complex": (lambda x: x.astype(complex), None, "complex numbers"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], None, "no rectangular array"),
    "flat": (lambda x: x[:, 0], None, r"shape \(40,\) has no feature axis"),
    "empty": (lambda x: x[:0], lambda y: y[:0], r"x_train: empty \(shape \(0, 3\)\)"),
    "lengths": (None, lambda y: y[:-1], "train: 40 inputs but 39 targets"),
    "negative label": (
        None,
        lambda y: with_value(y, 7, -1),
        r"y_train: label -1 at index \[7\]. labels must be 0..C-1",
    ),
    "gap": (None, lambda y: y + 1, r"label 1 at index \[0\], but label 0 never occurs"),
    "inner gap": (None, lambda y: np.where(y == 2, 3, y), r"label 3 at index \[2\], but label 2 never occurs"),
    "far label": (
        None,
        lambda y: with_value(y, 3, 5000),
        r"label 5000 at index \[3\], but label 3 never occurs|label 4",
    ),
    "nan target": (None, lambda y: with_value(y.astype(float), 4, np.nan), r"y_train: nan at index \[4\]"),
    "scalar target": (None, lambda y: 3, r"y_train: empty \(shape \(\)\)"),
    "negative token": (lambda x: np.full((40, 3), -2), None, r"token -2 at index \[0, 0\]"),
    "too few": (lambda x: x[:2], lambda y: y[:2], "2 samples are too few to cut test and val from"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name: str) -> None:
    x_change, y_change, message = BAD[name]
    with pytest.raises(PliantError, match=message) as caught:
        Dataset.of(damaged(x_change, y_change))
    assert "\n" not in str(caught.value)


def test_splits_must_be_alike() -> None:
    (x, y), (u, v) = arrays(40, 3), arrays(8, 2)
    with pytest.raises(PliantError, match="samples of test have shape and dtype"):
        Dataset.of((x, y, u, v))
    with pytest.raises(PliantError, match="targets differ in kind"):
        Dataset.of((x, y, x, y.astype(float)))


def test_structured_inputs_of_different_lengths() -> None:
    x, y = arrays()
    with pytest.raises(PliantError, match=r"inputs of different lengths \[40, 39\]"):
        Dataset.of(((x, x[:-1]), y))


def test_torch_samples_that_do_not_stack() -> None:
    ragged = [(torch.zeros(2), 0), (torch.zeros(3), 1)]

    class Ragged(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return ragged[index]

    with pytest.raises(PliantError, match="train data: samples cannot be stacked"):
        Dataset.of(Ragged(torch.zeros(2)))
