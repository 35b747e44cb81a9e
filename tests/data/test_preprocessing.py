import json
from typing import Any

import numpy as np
import pytest
import torch

from pliant.core import PliantError
from pliant.data import Dataset, apply

RNG = np.random.default_rng(1)
Y = np.arange(30) % 3


@pytest.mark.parametrize(
    ("shape", "layout", "result"),
    [
        ((30, 6, 5), "NHW", (1, 6, 5)),
        ((30, 6, 5, 3), "NHWC", (3, 6, 5)),
        ((30, 3, 6, 5), "NCHW", (3, 6, 5)),
        ((30, 6, 5, 1), "NHWC", (1, 6, 5)),
        ((30, 7), "NF", (7,)),
    ],
)
def test_uint8_is_recognised_and_normalised_by_train(
    shape: tuple[int, ...], layout: str, result: tuple[int, ...]
) -> None:
    raw = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = Dataset.of({"x_train": raw, "y_train": Y, "x_val": raw[:6], "y_val": Y[:6], "x_test": raw, "y_test": Y})
    info = json.loads(json.dumps(data.preprocessing))
    assert (info["dtype"], info["layout"], info["scale"]) == ("uint8", layout, 255.0)
    assert info["shape"] == list(shape[1:])
    assert data.shape == result
    assert data.train.inputs.dtype == torch.float32
    axes = [0, *range(2, data.train.inputs.ndim)]
    assert torch.allclose(data.train.inputs.mean(axes), torch.zeros(result[0]), atol=1e-4)
    assert torch.allclose(data.train.inputs.std(axes, correction=0), torch.ones(result[0]), atol=1e-4)
    assert torch.equal(apply(torch.from_numpy(raw), info), data.test.inputs)


def test_numbers_by_hand() -> None:
    raw = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    raw[..., 1] = 255
    raw[:2, ..., 2] = 255
    info = Dataset.of((raw, [0, 1, 0, 1], raw[:1], [1]), seed=0, val_share=0.25).preprocessing
    assert info["mean"][:2] == [0.0, 1.0]
    assert info["std"][:2] == [1.0, 1.0]  # constant channels are not blown up
    fixed = {**info, "mean": [0.5, 0.0, 0.25], "std": [0.5, 1.0, 0.25]}
    x = apply(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8), {**fixed, "shape": [1, 1, 3]})
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, 1.0, -0.2]))


def test_float_arrays_are_taken_as_they_are() -> None:
    raw = RNG.normal(size=(30, 3, 4, 4)).astype(np.float32)
    data = Dataset.of((raw, Y, raw, Y))
    assert torch.equal(data.test.inputs, torch.from_numpy(raw))
    assert (data.preprocessing["mean"], data.preprocessing["layout"]) == ([], "NCHW")


def test_tokens_are_taken_as_they_are() -> None:
    raw = RNG.integers(0, 9, (30, 5)).astype(np.int32)
    data = Dataset.of((raw, Y, raw, Y))
    assert torch.equal(data.test.inputs, torch.from_numpy(raw).long())
    assert (data.preprocessing["layout"], data.preprocessing["dtype"]) == ("NT", "int64")


@pytest.mark.parametrize("shape", [(30, 3, 8, 3), (30, 5, 8, 6)])
def test_uint8_without_a_clear_channel_axis(shape: tuple[int, ...]) -> None:
    with pytest.raises(PliantError, match=r"cannot tell the channel axis. give float32"):
        Dataset.of((np.zeros(shape, dtype=np.uint8), Y))


def test_apply_refuses_another_shape() -> None:
    info = Dataset.of((np.zeros((30, 5), dtype=np.uint8), Y)).preprocessing
    with pytest.raises(PliantError, match=r"samples of shape \[4\]. give samples of shape \[5\]"):
        apply(torch.zeros(2, 4, dtype=torch.uint8), info)


def test_the_runtime_prepares_alike() -> None:
    runtime = pytest.importorskip("pliant_runtime.preprocess", reason="pliant-runtime is not installed")
    from pliant_runtime.grammar import Preprocessing

    raw = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    info = Dataset.of((raw, Y)).preprocessing
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in info.items()}
    fixed = Preprocessing(**values)
    found = runtime.apply(raw, fixed)
    assert np.allclose(found, apply(torch.from_numpy(raw), info).numpy(), atol=1e-6)
