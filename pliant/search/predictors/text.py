"""Predictor over the text of networks: one model for all search spaces."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from pliant.core import Facts
from pliant.export.network_text import read_line
from pliant.search.pareto import Array
from pliant.search.predict import Predictor, fit, reach
from pliant.search.predictors.boosting import bagged
from pliant.search.predictors.contract import Fitted
from pliant.search.predictors.process import best_process
from pliant.search.predictors.quality import kendall_tau

_BUCKETS = 256


@dataclass(frozen=True)
class TextPredictor:
    """A fitted predictor, asked with texts: the average of models that go wrong in different ways.

    Args:
        models: each predicts from rows of features.
        reading: what the features are: one of `READINGS`.
        centre: [features], mean of the training rows.
        spread: [features], their standard deviation; 1 for features that do not vary.
        misses: [texts], ascending: how many predicted standard deviations left-out networks lay off.
    """

    facts: ClassVar[Facts] = Facts(
        title="ONNX-Net: Towards Universal Representations and Instant Performance Prediction for Neural Architectures",
        year=2025,
        room="search",
        rows=("041",),
        deviations=(
            "the text is read by counts and hashed n-grams into a ridge, a Gaussian process and boosted trees, not by a"
            " fine-tuned language model",
            "the order of the lines stands for the edges",
        ),
    )

    models: tuple[Fitted, ...]
    reading: str
    centre: Array
    spread: Array
    misses: Array

    def mean(self, texts: Sequence[str]) -> Array:
        """Predictions: float64 [texts]."""
        return _averaged(self.models, self._rows(texts))[0]

    def std(self, texts: Sequence[str]) -> Array:
        """Standard deviation of a measurement of each network: float64 [texts]."""
        return _averaged(self.models, self._rows(texts))[1]

    def interval(self, texts: Sequence[str], share: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which `share` of the measurements lie: float64 [texts] each.

        They are calibrated on the networks that were left out in turn: on whole spaces, where there were groups.

        Raises:
            ValueError: a share that is not between 0 and 1.
        """
        middle, spread = _averaged(self.models, self._rows(texts))
        half = reach(self.misses, share) * spread
        return middle - half, middle + half

    def draw(self, texts: Sequence[str], n: int, rng: np.random.Generator) -> Array:
        """`n` plausible functions evaluated at every network, each of one model: float64 [n, texts]."""
        rows = self._rows(texts)
        drawn = np.stack([model.draw(rows, n, rng) for model in self.models])
        return np.asarray(drawn[rng.integers(len(self.models), size=n), np.arange(n)])

    def _rows(self, texts: Sequence[str]) -> Array:
        return (READINGS[self.reading](texts) - self.centre) / self.spread


def fit_text(texts: Sequence[str], *, targets: Array, groups: Sequence[str] | None = None) -> TextPredictor:
    """A predictor of any figure of a network from its text.

    A ridge, a Gaussian process and boosted trees are averaged. Of two readings of a text (how much of everything it
    has; that and hashed words and pairs of words) the one is kept that better ranks networks that were left out. Given
    groups, whole groups are left out, so that what carries over to a space that was never seen wins.

    After "ONNX-Net: Towards Universal Representations and Instant Performance Prediction for Neural Architectures".
    Deviation: the text is read by hashed n-grams and counts, not by a fine-tuned language model.

    Args:
        texts: see `pliant.export.network_text`.
        targets: [texts], finite.
        groups: the space that each network is from; at least two, else none.

    Raises:
        ValueError: fewer than 10 texts, or groups that are not one for each text.
    """
    if len(texts) < 10 or len(texts) != len(targets):
        raise ValueError(f"give at least 10 texts and a target for each, got {len(texts)} and {len(targets)}")
    if groups is not None and len(groups) != len(texts):
        raise ValueError(f"give one group for each text, got {len(groups)} for {len(texts)}")
    parts = _parts(len(texts), groups)
    tried = {name: _left_out(read(texts), targets, parts) for name, read in READINGS.items()}
    reading = max(tried, key=lambda name: tried[name][0])
    rows = READINGS[reading](texts)
    centre, spread = _scaling(rows)
    return TextPredictor(_models((rows - centre) / spread, targets), reading, centre, spread, tried[reading][1])


@dataclass(frozen=True)
class _Line:
    """A ridge over rows of features."""

    inner: Predictor

    def mean(self, rows: Array) -> Array:
        return self.inner.mean(rows, np.zeros((len(rows), 1)))

    def std(self, rows: Array) -> Array:
        return self.inner.std(rows, np.zeros((len(rows), 1)))

    def interval(self, rows: Array, share: float = 0.9) -> tuple[Array, Array]:
        return self.inner.interval(rows, np.zeros((len(rows), 1)), share)

    def draw(self, rows: Array, n: int, rng: np.random.Generator) -> Array:
        return self.inner.draw(rows, np.zeros((len(rows), 1)), n, rng)


def _models(rows: Array, targets: Array) -> tuple[Fitted, ...]:
    line = _Line(fit(rows, np.zeros((len(rows), 1)), targets))
    return line, best_process(rows, targets), bagged(rows, targets)


def _averaged(models: Sequence[Fitted], rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of a measurement, the models' disagreement in it."""
    means = np.stack([model.mean(rows) for model in models])
    squares = np.stack([model.std(rows) ** 2 for model in models])
    return np.asarray(means.mean(axis=0)), np.asarray(np.sqrt(squares.mean(axis=0) + means.var(axis=0)))


def _parts(count: int, groups: Sequence[str] | None) -> list[Array]:
    """Masks of the networks to leave out in turn."""
    names = sorted(set(groups)) if groups is not None else []
    if groups is not None and len(names) > 1:
        return [np.asarray([group == name for group in groups]) for name in names]
    fold = np.random.default_rng(0).permutation(count) % 5
    return [fold == number for number in range(5)]


def _left_out(rows: Array, targets: Array, parts: Sequence[Array]) -> tuple[float, Array]:
    """Rank correlation on the networks that are left out in turn, and how far off they lie, ascending."""
    taus, misses = [], []
    for part in parts:
        held = part.astype(bool)
        centre, spread = _scaling(rows[~held])
        models = _models((rows[~held] - centre) / spread, targets[~held])
        mean, std = _averaged(models, (rows[held] - centre) / spread)
        taus.append(kendall_tau(mean, targets[held]))
        misses.append(np.abs(mean - targets[held]) / std.clip(1e-12))
    return float(np.mean(taus)), np.sort(np.concatenate(misses))


def _scaling(rows: Array) -> tuple[Array, Array]:
    spread = rows.std(axis=0)
    return rows.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


# -- reading ----------------------------------------------------------------------------------------------------------


def amounts(texts: Sequence[str]) -> Array:
    """How much of everything each text has, in powers of two: float64 [texts, 9].

    Weights, multiply-accumulates, numbers read and written, operators, convolutions and matrix products; of these two
    the most and the fewest channels, the most places and the places of the last one.
    """
    return np.asarray([_amounts(text) for text in texts], dtype=np.float64)


def _amounts(text: str) -> list[float]:
    lines = [read_line(line) for line in text.splitlines()]
    products = [line for line in lines if line.multiplies]
    widths = [line.channels for line in products] or [1]
    places = [math.prod(line.results[0]) // max(1, line.channels) for line in products] or [1]
    amounts = [
        sum(line.parameters for line in lines), sum(line.macs for line in lines), sum(line.values for line in lines),
        len(lines), len(products), max(widths), min(widths), max(places), places[-1],
    ]  # fmt: skip
    return [math.log2(1 + amount) for amount in amounts]


def words_too(texts: Sequence[str]) -> Array:
    """`amounts`, and how often each word and each pair of neighbouring words occurs, hashed into buckets.

    Numbers are read as powers of two; counts as shares of the text.
    """
    return np.concatenate([amounts(texts), np.asarray([_hashed(text) for text in texts])], axis=1)


def _hashed(text: str) -> Array:
    row = np.zeros(_BUCKETS)
    for line in text.splitlines():
        words = list(_words(line))
        for gram in [*words, *(" ".join(pair) for pair in pairwise(words))]:
            row[zlib.crc32(gram.encode()) % _BUCKETS] += 1.0
    return np.asarray(np.sqrt(row / max(1.0, row.sum())))


def _words(line: str) -> Iterator[str]:
    for word in line.split():
        parts = word.split("x")
        if all(part.isdigit() for part in parts):
            yield "x".join(f"2^{round(math.log2(max(1, int(part))))}" for part in parts)
        else:
            yield word


READINGS: dict[str, Callable[[Sequence[str]], Array]] = {"amounts": amounts, "words": words_too}
"""What a text can be read as."""
