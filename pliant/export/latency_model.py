"""Latency of a network from the text of its graph, fitted to what was measured on one machine."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError
from pliant.export.network_text import Line, read_line
from pliant_runtime.probes import Description, Reading

Array = NDArray[np.float64]

_KINDS = ("Conv", "depthwise", "matrix product", "other")
_BLOCK = 8  # channels that processors work on together
_SLACK = 1.1  # beyond what was measured, as a factor
_WHOLE = 4.0  # weight of a whole network beside that of an operator
_TOTALS = ("multiply-accumulates", "numbers read and written", "weights", "operators")


@dataclass(frozen=True)
class LatencyModel:
    """What `fit_latency` returns.

    Args:
        weights: [parts], milliseconds per unit of each part of `_parts`; none is negative.
        residual: what predicts the logarithm of measured over summed milliseconds, or None where it did not help.
        low: [totals], least of each of `_TOTALS` among the networks that were learned from.
        high: [totals], most of each.
        operators: kinds that were measured.
        median_relative_error: of the networks that check.
        rank_correlation: of their measured and predicted latencies, see `rank_correlation`.
        checks: how many networks check.
    """

    weights: Array
    residual: Any
    low: Array
    high: Array
    operators: frozenset[str]
    median_relative_error: float
    rank_correlation: float
    checks: int

    def milliseconds(self, text: str) -> float:
        """Predicted latency of a network.

        Args:
            text: see `network_text`.

        Raises:
            PliantError: the network lies outside what was measured; the message names in what.
        """
        lines = _lines(text)
        self._inside(lines)
        return float(self._predict([lines])[0])

    def _inside(self, lines: Sequence[Line]) -> None:
        fix = "measure probes of this network: pliant.export.probe_family(net, folder)"
        strange = sorted({line.operator for line in lines} - self.operators)
        if strange:
            raise PliantError(f"operator {strange[0]} was not measured on this hardware", where="latency", fix=fix)
        for name, value, low, high in zip(_TOTALS, _totals(lines), self.low, self.high, strict=True):
            if not low / _SLACK <= value <= high * _SLACK:
                raise PliantError(
                    f"the network has {value:.3g} {name}; measured were networks of {low:.3g} to {high:.3g}",
                    where="latency",
                    fix=fix,
                )

    def _predict(self, networks: Sequence[Sequence[Line]]) -> Array:
        summed = np.stack([_parts(lines) for lines in networks]) @ self.weights
        if self.residual is None:
            return summed
        return np.asarray(summed * np.exp(self.residual.predict(_looks(networks))))


def fit_latency(description: Description) -> LatencyModel:
    """A sum over operators, and a smooth correction for how whole networks differ from their sum.

    The sum has a constant per call and, for each kind of operator, milliseconds per operator, multiply-accumulate,
    number read or written, and weight; they come from non-negative least squares on relative errors (Lawson & Hanson
    1974). The correction is a Gaussian process on the logarithms of a network's totals; it is kept where it lowers the
    error on networks that are left out in turn.

    Raises:
        PliantError: too few networks, or noise larger than the differences between them.
    """
    readings = description.measured
    wholes = [reading for reading in readings if reading.role == "whole"]
    checks = [reading for reading in readings if reading.role == "check"]
    if len(wholes) < 4 or len(checks) < 2:
        raise PliantError(
            f"{len(wholes)} networks to learn from and {len(checks)} to check with; at least 4 and 2 are needed",
            where="hardware description",
        )
    refuse_noise(description)
    weights = _summing([reading for reading in readings if reading.role != "check"])
    networks = [_lines(reading.text) for reading in wholes]
    totals = np.stack([_totals(lines) for lines in networks])
    parts = np.stack([_parts(lines) for lines in networks])
    gaps = np.log([reading.median_ms for reading in wholes]) - np.log(parts @ weights)
    used = {line.operator for reading in wholes for line in _lines(reading.text)}
    found = LatencyModel(
        weights, _correction(networks, gaps), totals.min(axis=0), totals.max(axis=0), frozenset(used), 0.0, 0.0, 0
    )
    measured = np.asarray([reading.median_ms for reading in checks])
    predicted = found._predict([_lines(reading.text) for reading in checks])
    error = float(np.median(np.abs(predicted / measured - 1)))
    return LatencyModel(
        **{**vars(found), "median_relative_error": error, "checks": len(checks),
           "rank_correlation": rank_correlation(measured, predicted)}
    )  # fmt: skip


def refuse_noise(description: Description) -> None:
    """Raises `PliantError` where the measurement cannot tell the networks apart: noise above half of their spread."""
    times = np.log([reading.median_ms for reading in description.measured if reading.role == "whole"])
    low, high = np.percentile(times, [25, 75])
    if np.log1p(description.noise) > (high - low) / 2:
        raise PliantError(
            f"the measurement's noise is {description.noise:.1%}, the middle half of the networks differ by only"
            f" {np.expm1(high - low):.1%}",
            where="hardware description",
            fix="measure with nothing else running, or for longer (--seconds), or probe a family that spreads more",
        )


def rank_correlation(measured: Array, predicted: Array, apart: float = 0.1) -> float:
    """How well latencies are ranked: the share of pairs at least `apart` from each other in the right order, -1 to 1.

    This is Kendall's rank correlation over those pairs; 1 where there are none.
    """
    ratio = measured[:, None] / measured[None, :]
    upper = np.triu(np.ones_like(ratio, dtype=bool), k=1)
    far = upper & ((ratio >= 1 + apart) | (ratio <= 1 / (1 + apart)))
    if not far.any():
        return 1.0
    agree = np.sign(np.log(ratio)) * np.sign(predicted[:, None] - predicted[None, :])
    return float(agree[far].mean())


# -- parts of a network -----------------------------------------------------------------------------------------------


def _lines(text: str) -> list[Line]:
    return [read_line(line) for line in text.splitlines()]


def _kind(line: Line) -> int:
    if line.operator.startswith("Conv"):
        return 1 if line.group > 1 else 0
    return 2 if line.multiplies else 3


def _parts(lines: Sequence[Line]) -> Array:
    """What milliseconds are summed over: a call, and for each kind its number and its millions of this and that."""
    row = np.zeros(1 + 5 * len(_KINDS))
    row[0] = 1.0
    for line in lines:
        at = 1 + 5 * _kind(line)
        padded = line.macs * -(-line.channels // _BLOCK) * _BLOCK / max(1, line.channels)
        row[at : at + 5] += [1.0, line.macs / 1e6, padded / 1e6, line.values / 1e6, line.parameters / 1e6]
    return row


def _totals(lines: Sequence[Line]) -> Array:
    """See `_TOTALS`."""
    sums = [
        sum(line.macs for line in lines),
        sum(line.values for line in lines),
        sum(line.parameters for line in lines),
    ]
    return np.asarray([*sums, len(lines)], dtype=np.float64)


def _looks(networks: Sequence[Sequence[Line]]) -> Array:
    """What the correction depends on: logarithms of totals and of the work of each kind."""
    rows = []
    for lines in networks:
        works = np.zeros(len(_KINDS))
        for line in lines:
            works[_kind(line)] += line.macs + line.values
        rows.append(np.log1p(np.concatenate([_totals(lines), works])))
    return np.stack(rows)


def _summing(readings: Sequence[Reading]) -> Array:
    from scipy.optimize import nnls

    rows = np.stack([_parts(_lines(reading.text)) for reading in readings])
    times = np.asarray([reading.median_ms for reading in readings])
    weight = np.asarray([_WHOLE if reading.role == "whole" else 1.0 for reading in readings])
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    relative = rows / scale * (weight / times)[:, None]
    found, _ = nnls(relative, weight)
    return np.asarray(found / scale)


class _Correction:
    """A Gaussian process over standardised looks."""

    def __init__(self, networks: Sequence[Sequence[Line]], gaps: Array) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        looks = _looks(networks)
        self._centre, self._spread = looks.mean(axis=0), looks.std(axis=0)
        self._spread[self._spread < 1e-9] = 1.0
        self._middle = float(gaps.mean())
        kernel = ConstantKernel(0.01, (1e-5, 1.0)) * RBF(2.0, (0.3, 30.0)) + WhiteKernel(1e-3, (1e-6, 0.1))
        self.model = GaussianProcessRegressor(kernel, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at a bound: then that bound is meant
            self.model.fit((looks - self._centre) / self._spread, gaps - self._middle)

    def predict(self, looks: Array) -> Array:
        """Logarithm of what the sum is to be multiplied by."""
        return np.asarray(self.model.predict((looks - self._centre) / self._spread) + self._middle)

    @cached_property
    def left_out(self) -> Array:
        """Residuals of the points when each is left out (Rasmussen & Williams 2006, equation 5.12)."""
        inverse = np.linalg.inv(self.model.L_ @ self.model.L_.T)
        return np.asarray(self.model.alpha_.ravel() / np.diag(inverse))


def _correction(networks: Sequence[Sequence[Line]], gaps: Array) -> _Correction | None:
    found = _Correction(networks, gaps)
    return found if np.abs(found.left_out).mean() < np.abs(gaps).mean() else None
