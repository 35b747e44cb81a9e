"""Measurements: a file in which every figure is kept by what it depends on, so that nothing is measured twice."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pliant.core import PliantError, tensors_of

_TABLE = "CREATE TABLE IF NOT EXISTS measurements (key TEXT PRIMARY KEY, about TEXT NOT NULL, value TEXT NOT NULL)"


class Measurements:
    """A map from what was measured to what came out, written through to SQLite.

    A figure is on the disk when `put` returns, so that not even a killed process loses it.

    Args:
        path: the file; None keeps everything in memory.

    Raises:
        PliantError: the file is damaged or cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        try:
            self._base = sqlite3.connect(":memory:" if path is None else path, timeout=60)
            with self._base:
                self._base.execute(_TABLE)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def get(self, about: Mapping[str, Any]) -> Any:
        """What was measured for exactly this, or None.

        Args:
            about: plain JSON data naming everything the figure depends on.
        """
        try:
            row = self._base.execute("SELECT value FROM measurements WHERE key = ?", (digest(about),)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return None if row is None else json.loads(row[0])

    def put(self, about: Mapping[str, Any], value: Any) -> None:
        """Keep a value (plain JSON data) for this; a value already there is replaced."""
        row = (digest(about), json.dumps(about, sort_keys=True), json.dumps(value, allow_nan=False))
        try:
            with self._base:
                self._base.execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def everything(self) -> list[Any]:
        """What every figure depends on, in no order."""
        try:
            return [json.loads(about) for (about,) in self._base.execute("SELECT about FROM measurements")]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def __len__(self) -> int:
        return int(self._base.execute("SELECT COUNT(*) FROM measurements").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def _failed(self, error: sqlite3.Error) -> PliantError:
        return PliantError(
            f"measurements cannot be read or written ({error})",
            where=str(self.path or "memory"),
            fix="remove the file to measure again, or choose another run folder",
        )


def digest(data: Any) -> str:
    """Hex SHA-256 of plain JSON data; equal data give equal text, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()


def tensors_digest(value: Any) -> str:
    """Hex SHA-256 over the shapes, dtypes and bytes of every tensor in tuples, lists and dicts."""
    text = hashlib.sha256()
    for tensor in tensors_of(value):
        text.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        text.update(_bytes(tensor))
    return text.hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a state dict: names, shapes, dtypes and bytes, in the order of the names."""
    return digest({name: tensors_digest(value) for name, value in state.items()})


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
