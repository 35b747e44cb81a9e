from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.core import PliantError
from pliant.data import load
from pliant.data.text import windows
from pliant.data.tiny_text import TEXT


def decode(data: Any, tokens: Any) -> Any:
    return "".join(data.classes[token] for token in tokens.flatten().tolist())


def test_windows_by_hand() -> None:
    split = windows(torch.arange(9), 3)
    assert split.inputs.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert split.targets.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert len(windows(torch.arange(10), 3)) == 3


def test_tiny_text_is_the_text_in_order() -> None:
    data = load("tiny-text", context=16)
    assert (data.task, data.loss, data.shape) == ("next_token", "next_token", (16,))
    assert data.outputs == len(set(TEXT))
    assert 4000 < len(TEXT) < 10_000
    assert decode(data, data.train.inputs) == TEXT[: data.train.inputs.numel()]
    assert decode(data, data.train.targets) == TEXT[1 : data.train.targets.numel() + 1]
    assert decode(data, data.val.inputs).startswith(TEXT[int(0.9 * len(TEXT)) :][:16])
    assert decode(data, data.test.inputs).startswith(TEXT[int(0.95 * len(TEXT)) :][:16])


def test_default_context_and_limit() -> None:
    data = load("tiny-text")
    assert data.shape == (64,)
    assert min(data.sizes.values()) >= 3
    assert load("tiny-text", limit=2).sizes == {"train": 2, "val": 2, "test": 2}
    assert data.preprocessing == {"dtype": "int64", "layout": "NT", "shape": [64], "scale": 1.0, "mean": [], "std": []}


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcd" * 100, encoding="utf-8")
    data = load(path, context=8)
    assert data.classes == ("a", "b", "c", "d")
    assert data.train.inputs[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_bad_texts(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(PliantError, match="short: 3 characters are too few for windows of 64"):
        load(tmp_path / "short.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(PliantError, match="cannot be read as UTF-8 text"):
        load(tmp_path / "bytes.txt")
    with pytest.raises(ValueError, match="context must be at least 1, got 0"):
        load("tiny-text", context=0)
