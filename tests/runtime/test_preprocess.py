"""Raw samples are prepared exactly as the data room prepares them."""

from typing import Any

import numpy as np
import pytest
import torch

from pliant.data.preprocessing import apply, fit
from pliant_runtime.grammar import Preprocessing, Signature, Value
from pliant_runtime.preprocess import arrays_of

RAW = {
    "grey images": torch.randint(0, 256, (9, 5, 6), dtype=torch.uint8),
    "colour images, channels last": torch.randint(0, 256, (9, 5, 6, 3), dtype=torch.uint8),
    "colour images, channels first": torch.randint(0, 256, (9, 3, 5, 6), dtype=torch.uint8),
    "table": torch.randn(9, 4) * 3 + 2,
    "bytes": torch.randint(0, 256, (9, 4), dtype=torch.uint8),
    "tokens": torch.randint(0, 50, (9, 7)),
    "cubes": torch.randn(9, 2, 3, 4, 5),
}


def signature(info: dict[str, Any], prepared: torch.Tensor) -> Signature:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in info.items()}
    dtype = str(prepared.dtype).removeprefix("torch.")
    value = Value("input", dtype, ("N", *prepared.shape[1:]))
    return Signature((value,), (), "tensor", Preprocessing(**fields), (), None)


@pytest.mark.parametrize("kind", RAW)
def test_the_runtime_prepares_samples_as_training_did(kind: str) -> None:
    raw = RAW[kind]
    info = fit(raw, kind, normalise=True)
    wanted = apply(raw, info)
    got = arrays_of(raw.numpy(), signature(info, wanted), preprocessed=False)[0]
    assert got.dtype == wanted.numpy().dtype
    np.testing.assert_array_equal(got, wanted.numpy())
    assert got.flags.c_contiguous


def several(call: str) -> Signature:
    values = (Value("a", "float32", ("N", 2)), Value("b", "int64", ("N",)))
    return Signature(values, (), call, None, (), None)


def test_several_inputs_come_in_the_order_of_the_signature() -> None:
    a, b = np.zeros((3, 2), dtype=np.float32), np.arange(3)
    for inputs, call in (((a, b), "tuple"), ({"b": b, "a": a}, "dict")):
        got = arrays_of(inputs, several(call), preprocessed=False)
        assert [array.dtype.name for array in got] == ["float32", "int64"]


def test_several_inputs_must_fit_together() -> None:
    a, b = np.zeros((3, 2), dtype=np.float32), np.arange(3)
    with pytest.raises(ValueError, match="inputs differ in rows: a has 3, b has 2"):
        arrays_of((a, b[:2]), several("tuple"), preprocessed=False)
    with pytest.raises(TypeError, match="takes a tuple of 2 arrays, got tuple of 1"):
        arrays_of((a,), several("tuple"), preprocessed=False)
    with pytest.raises(TypeError, match="takes a dict with a, b, got ndarray"):
        arrays_of(a, several("dict"), preprocessed=False)
    with pytest.raises(ValueError, match="takes a, b, got a, c"):
        arrays_of({"a": a, "c": b}, several("dict"), preprocessed=False)
