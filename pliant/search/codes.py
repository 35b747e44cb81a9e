"""Configs as rows of choice numbers, for the arithmetic of predictors and populations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pliant.core import Config, Space

Codes = NDArray[np.int64]
"""[configs, knobs]: which choice of each knob, 0 the first (the smallest); -1 where the knob is not there."""


def counts_of(space: Space) -> Codes:
    """How many choices each knob has: int64 [knobs]."""
    return np.asarray([len(knob.choices) for knob in space], dtype=np.int64)


def encode(space: Space, configs: Sequence[Config]) -> Codes:
    """Configs to rows of choice numbers."""
    return np.asarray([space.codes(config) for config in configs], dtype=np.int64).reshape(len(configs), len(space))


def decode(space: Space, row: Codes) -> Config:
    """One row back to its config."""
    return Config({knob.name: knob.choices[int(i)] for knob, i in zip(space, row, strict=True) if i >= 0})


def one_hot(space: Space, codes: Codes) -> NDArray[np.float64]:
    """`Space.encode` of many rows at once: float64 [configs, columns]."""
    return space.encode_codes(codes)


def levels(space: Space, codes: Codes) -> NDArray[np.float64]:
    """How far up each knob stands, from -1 (least, absent) to 1 (all); 0 if unordered: float64 [configs, knobs]."""
    values = 2.0 * codes.clip(0) / np.maximum(counts_of(space) - 1, 1) - 1.0
    if not all(knob.ordered for knob in space):
        values[:, [not knob.ordered for knob in space]] = 0.0
    return values


def settle(space: Space, rows: Codes, rng: np.random.Generator) -> Codes:
    """The rows made valid: -1 for knobs that are not there, a draw for those that are there and have no choice yet.

    Draws nothing in a space without conditions.
    """
    if not space.conditional:
        return rows
    rows = rows.copy()
    for number in range(len(space)):
        there = _there(space, rows, number)
        rows[~there, number] = -1
        open_ones = np.flatnonzero(there & (rows[:, number] < 0))
        rows[open_ones, number] = rng.integers(0, len(space.knobs[number].choices), len(open_ones))
    return rows


def every(space: Space) -> Codes:
    """All rows, smallest first. Mind `space.size`."""
    counts = counts_of(space)
    if not space.conditional:
        return np.indices(tuple(counts)).reshape(len(counts), space.size).T.astype(np.int64)
    rows = np.zeros((1, len(counts)), dtype=np.int64)
    for number in range(len(counts)):
        rows = extended(space, rows, number)
    return rows


def extended(space: Space, rows: Codes, number: int) -> Codes:
    """Each row once for every choice of the knob `number` that it may have; knobs before it must be settled."""
    there = _there(space, rows, number)
    times = np.where(there, len(space.knobs[number].choices), 1)
    first = np.repeat(np.cumsum(times) - times, times)
    choice = np.where(np.repeat(there, times), np.arange(len(first)) - first, -1)
    rows = np.repeat(rows, times, axis=0)
    rows[:, number] = choice
    return rows


def _there(space: Space, rows: Codes, number: int) -> NDArray[np.bool_]:
    """In which rows a knob is there; knobs before it must be settled."""
    there = np.ones(len(rows), dtype=bool)
    for parent, allowed in space.conditions[number]:
        there &= np.isin(rows[:, parent], list(allowed))
    return there


def draw(space: Space, n: int, rng: np.random.Generator) -> Codes:
    """Random rows that spread over small and large networks.

    Each row first draws how large it wants to be, then every ordered knob around that; the others are drawn evenly.
    Independent knobs would crowd in the middle: the cost of a network is a sum over many of them.
    """
    return settle(space, spread(space, n, rng), rng)


def spread(space: Space, n: int, rng: np.random.Generator) -> Codes:
    """`draw` as if every knob were always there."""
    counts = counts_of(space)
    share = rng.random((n, 1))
    rows = np.asarray(rng.binomial(counts - 1, np.broadcast_to(share, (n, len(counts)))), dtype=np.int64)
    names = np.flatnonzero([not knob.ordered for knob in space])
    if len(names):
        rows[:, names] = rng.integers(0, counts[names], (n, len(names)))
    return rows


def uniform(space: Space, n: int, rng: np.random.Generator) -> Codes:
    """Random rows, every knob drawn evenly among its choices."""
    return settle(space, rng.integers(0, counts_of(space), (n, len(space))), rng)


def mutate(space: Space, rows: Codes, rng: np.random.Generator, *, most: int = 3) -> Codes:
    """A copy in which each row has one to `most` knobs drawn anew (never to the choice they had, where they can)."""
    counts, rows = counts_of(space), rows.copy()
    free = np.flatnonzero(counts > 1)
    if len(free) == 0:
        return rows
    for row, times in zip(rows, rng.integers(1, most + 1, len(rows)), strict=True):
        here = free[row[free] >= 0] if space.conditional else free
        if len(here):
            knobs = here[rng.integers(len(here), size=int(times))]
            row[knobs] = (row[knobs] + rng.integers(1, counts[knobs])) % counts[knobs]
    return settle(space, rows, rng)


def cross(space: Space, rows: Codes, n: int, rng: np.random.Generator) -> Codes:
    """`n` children, each knob from one of two random parents among `rows`."""
    mothers, fathers = rows[rng.integers(len(rows), size=n)], rows[rng.integers(len(rows), size=n)]
    return mate(space, mothers, fathers, rng)


def mate(space: Space, mothers: Codes, fathers: Codes, rng: np.random.Generator) -> Codes:
    """A child of every pair, each knob from one of the two (from the one that has it)."""
    children = np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
    return settle(space, np.where(children < 0, np.maximum(mothers, fathers), children), rng)


def new_rows(rows: Codes, seen: Codes) -> Codes:
    """The distinct rows that are not among `seen`, sorted."""
    known = {row.tobytes() for row in np.ascontiguousarray(seen)}
    rows = _sorted_unique(rows)
    return rows[[row.tobytes() not in known for row in rows]] if len(rows) else rows


def _sorted_unique(rows: Codes) -> Codes:
    if rows.shape[1] == 0:  # numpy.unique refuses rows without columns
        return rows[:1]
    return np.ascontiguousarray(np.unique(rows, axis=0))
