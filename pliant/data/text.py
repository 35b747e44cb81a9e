"""Text as windows of character tokens for next-token prediction."""

from pathlib import Path

import torch
from torch import Tensor

from pliant.core import PliantError
from pliant.data.dataset import Dataset, Split
from pliant.data.preprocessing import Preprocessing

TRAIN, VAL = 0.90, 0.95
"""Where the text is cut: train before the first, test after the second."""


def read_text(path: Path) -> str:
    """The text in a UTF-8 file. Raises `PliantError` when it cannot be read as such."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PliantError(f"cannot be read as UTF-8 text ({error})", where=str(path)) from error


def windows(codes: Tensor, context: int) -> Split:
    """Consecutive windows without overlap; the target of each token is the one after it.

    Args:
        codes: int64 [characters], more than `context` of them.
        context: tokens per window.

    Returns:
        inputs and targets int64 [n, context], n = (characters - 1) // context; a rest is dropped.
    """
    count = (len(codes) - 1) // context
    used = count * context
    return Split(codes[:used].view(count, context).clone(), codes[1 : used + 1].view(count, context).clone())


def text_dataset(name: str, text: str, *, context: int = 64, limit: int | None = None) -> Dataset:
    """Characters of a text, cut in place into 90 % train, 5 % val, 5 % test.

    The vocabulary is every character of the whole text in code point order; it is what `classes` holds.

    Args:
        name: of the data set.
        text: at least 20 (context + 1) characters, so that every split holds a window.
        context: tokens per window.
        limit: most windows per split, from its beginning.

    Raises:
        ValueError: context < 1 or limit < 1.
        PliantError: too little text.
    """
    for what, value in (("context", context), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    vocabulary = sorted(set(text))
    number = {character: index for index, character in enumerate(vocabulary)}
    codes = torch.tensor([number[character] for character in text], dtype=torch.int64)
    first, second = int(TRAIN * len(codes)), int(VAL * len(codes))
    parts = [codes[:first], codes[first:second], codes[second:]]
    if min(map(len, parts)) <= context:
        problem = f"{len(text)} characters are too few for windows of {context} in every split"
        raise PliantError(
            problem, where=name, fix=f"give at least {20 * (context + 1)} characters or a smaller context"
        )
    train, val, test = (windows(part, context) for part in parts)
    if limit is not None:
        train, val, test = train.take(limit), val.take(limit), test.take(limit)
    info: Preprocessing = {
        "dtype": "int64",
        "layout": "NT",
        "shape": [context],
        "scale": 1.0,
        "mean": [],
        "std": [],
    }
    notes = (f"cut in place: 90 % train, 5 % val, 5 % test; windows of {context} characters without overlap",)
    return Dataset(name, train, val, test, "next_token", tuple(vocabulary), info, notes)
