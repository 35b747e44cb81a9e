"""Tables in csv files: numeric columns, one-hot text columns, one target."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError

MAX_LEVELS = 32
_MISSING = ("", "?", "na", "n/a", "nan", "null")


@dataclass(frozen=True)
class Table:
    """A table as read.

    Args:
        x: float32 [n, features].
        y: float32 [n] (quantities) or int64 [n] (class numbers).
        classes: class names, empty for quantities.
        columns: name of each feature; `column=level` for one-hot text columns.
        notes: what was decided about the target.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def _number(text: str) -> float | None:
    """The number a cell holds; NaN for a missing one; None for text."""
    if text.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PliantError(f"cannot be read as text ({error})", where=str(path)) from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise PliantError("empty", where=str(path))
    delimiter = max(",;\t", key=lines[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise PliantError(f"no csv ({error})", where=str(path)) from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            problem = f"row {number} has {len(row)} cells, row 1 has {len(rows[0])}"
            raise PliantError(problem, where=str(path), fix="every row needs a cell for every column")
    if len(rows[0]) < 2:
        raise PliantError("only one column", where=str(path), fix="separate cells by comma, semicolon or tab")
    return rows


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether row 1 names the columns: some column is text there and a number in every other row."""
    if len(rows) < 2:
        return False
    return any(
        _number(rows[0][column]) is None and all(_number(row[column]) is not None for row in rows[1:])
        for column in range(len(rows[0]))
    ) or (len(set(rows[0])) == len(rows[0]) and not any(_number(cell) is not None for row in rows for cell in row))


def read_csv(path: Path, *, target: str | int | None = None) -> Table:
    """A table: the header found, features as numbers, the target as classes or quantities.

    A target column is read as classes where it holds text or whole numbers (written without a decimal point), and as
    quantities otherwise. Text features become one column per level.

    Args:
        path: csv file; comma, semicolon or tab; with or without a header.
        target: name or index of the target column; the last one by default.

    Raises:
        ValueError: no such target column.
        PliantError: no csv, missing cells (naming row and column), or text with too many levels.
    """
    rows = _rows(path)
    header = has_header(rows)
    names = rows[0] if header else [f"column {index}" for index in range(len(rows[0]))]
    body = rows[1:] if header else rows
    position = _target_column(names, target, path)
    first_row = 2 if header else 1
    features, columns = [], []
    for index, name in enumerate(names):
        if index != position:
            block, levels = _feature([row[index] for row in body], f"{path}: column {name!r}", first_row)
            features.append(block)
            columns += [f"{name}={level}" for level in levels] or [name]
    cells = [row[position] for row in body]
    y, classes, note = _target(cells, names[position], f"{path}: column {names[position]!r}", first_row)
    return Table(np.concatenate(features, axis=1), y, classes, tuple(columns), (note,))


def _target_column(names: Sequence[str], target: str | int | None, path: Path) -> int:
    if target is None:
        return len(names) - 1
    if isinstance(target, int) and -len(names) <= target < len(names):
        return target % len(names)
    if target in names:
        return list(names).index(str(target))
    raise ValueError(f"{path} has no column {target!r}; columns are {', '.join(names)}")


def _refuse_missing(values: Sequence[float | None], where: str, first_row: int) -> None:
    for row, value in enumerate(values, start=first_row):
        if value is not None and not math.isfinite(value):
            raise PliantError(f"row {row} is empty, missing or not finite", where=where, fix="drop or fill it first")


def _feature(cells: Sequence[str], where: str, first_row: int) -> tuple[NDArray[np.float32], list[str]]:
    """Float32 [n, 1] of a numeric column, or the one-hot [n, levels] of a text column and its levels."""
    values = [_number(cell) for cell in cells]
    _refuse_missing(values, where, first_row)
    if all(value is not None for value in values):
        return np.array(values, dtype=np.float32)[:, None], []
    levels = sorted(set(cells))
    numeric = [row for row, value in enumerate(values, start=first_row) if value is not None]
    if numeric and len(numeric) > len(cells) // 2:
        row, cell = next(
            (row, cells[row - first_row])
            for row in range(first_row, first_row + len(cells))
            if values[row - first_row] is None
        )
        raise PliantError(f"row {row} holds {cell!r} among numbers", where=where, fix="write a number, or drop the row")
    if len(levels) > MAX_LEVELS:
        problem = f"text with {len(levels)} different values, at most {MAX_LEVELS} can become columns"
        raise PliantError(problem, where=where, fix="encode it as numbers or drop the column")
    return (np.array(cells)[:, None] == np.array(levels)).astype(np.float32), levels


def _target(cells: Sequence[str], name: str, where: str, first_row: int) -> tuple[NDArray[Any], tuple[str, ...], str]:
    values = [_number(cell) for cell in cells]
    _refuse_missing(values, where, first_row)
    whole = all(cell.lstrip("+-").isdigit() for cell in cells)
    if not whole and all(value is not None for value in values):
        return np.array(values, dtype=np.float32), (), f"target {name!r}: quantities"
    classes = sorted(set(cells), key=int if whole else None)
    number = {label: index for index, label in enumerate(classes)}
    note = f"target {name!r}: {len(classes)} classes"
    if whole:
        note += " (whole numbers; write them with a decimal point to regress them)"
    return np.array([number[cell] for cell in cells], dtype=np.int64), tuple(classes), note
