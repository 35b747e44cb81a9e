"""Configs as rows of choice numbers, for the arithmetic of predictors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pliant.core import Config, Space

Codes = NDArray[np.int64]
"""[configs, knobs]: which choice of each knob, 0 the smallest."""


def counts_of(space: Space) -> Codes:
    """How many choices each knob has: int64 [knobs]."""
    return np.asarray([len(knob.choices) for knob in space], dtype=np.int64)


def encode(space: Space, configs: Sequence[Config]) -> Codes:
    """Configs to rows of choice numbers."""
    rows = [[knob.choices.index(config[knob.name]) for knob in space] for config in configs]
    return np.asarray(rows, dtype=np.int64).reshape(len(configs), len(space))


def decode(space: Space, row: Codes) -> Config:
    """One row back to its config."""
    return Config({knob.name: knob.choices[int(i)] for knob, i in zip(space, row, strict=True)})


def one_hot(space: Space, codes: Codes) -> NDArray[np.float64]:
    """`Space.encode` of many rows at once: float64 [configs, sum of choices]."""
    counts = counts_of(space)
    starts = np.concatenate([[0], np.cumsum(counts)])
    row = np.zeros((len(codes), int(starts[-1])))
    np.put_along_axis(row, codes + starts[:-1], 1.0, axis=1)
    return row


def levels(space: Space, codes: Codes) -> NDArray[np.float64]:
    """How far up each knob stands, from -1 (least) to 1 (all): float64 [configs, knobs]."""
    return 2.0 * codes / np.maximum(counts_of(space) - 1, 1) - 1.0


def every(space: Space) -> Codes:
    """All rows, smallest first. Mind `space.size`."""
    counts = counts_of(space)
    return np.indices(tuple(counts)).reshape(len(counts), space.size).T.astype(np.int64)


def draw(space: Space, n: int, rng: np.random.Generator) -> Codes:
    """Random rows that spread over small and large networks.

    Each row first draws how large it wants to be, then every knob around that. Independent knobs would crowd in the
    middle: the cost of a network is a sum over many of them.
    """
    counts = counts_of(space)
    levels = rng.random((n, 1))
    return np.asarray(rng.binomial(counts - 1, np.broadcast_to(levels, (n, len(counts)))), dtype=np.int64)


def mutate(space: Space, rows: Codes, rng: np.random.Generator) -> Codes:
    """A copy in which each row has one to three knobs drawn anew (never to the choice they had, where they can)."""
    counts, rows = counts_of(space), rows.copy()
    free = np.flatnonzero(counts > 1)
    if len(free) == 0:
        return rows
    for row, times in zip(rows, rng.integers(1, 4, len(rows)), strict=True):
        knobs = free[rng.integers(len(free), size=int(times))]
        row[knobs] = (row[knobs] + rng.integers(1, counts[knobs])) % counts[knobs]
    return rows


def cross(rows: Codes, n: int, rng: np.random.Generator) -> Codes:
    """`n` children, each knob from one of two random parents among `rows`."""
    mothers, fathers = rows[rng.integers(len(rows), size=n)], rows[rng.integers(len(rows), size=n)]
    return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def new_rows(rows: Codes, seen: Codes) -> Codes:
    """The distinct rows that are not among `seen`, sorted."""
    known = {row.tobytes() for row in np.ascontiguousarray(seen)}
    rows = _sorted_unique(rows)
    return rows[[row.tobytes() not in known for row in rows]] if len(rows) else rows


def _sorted_unique(rows: Codes) -> Codes:
    if rows.shape[1] == 0:  # numpy.unique refuses rows without columns
        return rows[:1]
    return np.ascontiguousarray(np.unique(rows, axis=0))
