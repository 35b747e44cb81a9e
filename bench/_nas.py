"""Measured sub-networks of OFA-MobileNetV3 (search traces of DyNAS-T): rows, encodings and a surrogate to search on."""

import ast
import csv
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import Knob, PliantError, Space

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

FILES = ("mbnv3w10_linasnsga2_acc_macs", "mbnv3w10_evonsga2_acc_macs", "mbnv3w10_linasga_acc")
DATA = "Intel DyNAS-T traces of OFA-MobileNetV3 w1.0: measured ImageNet top-1 and MACs of 1,356 distinct sub-networks"
STAGES, BLOCKS = 5, 4
KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
PLACES = STAGES * BLOCKS
KNOBS = STAGES + 2 * PLACES
"""Columns of a row of choice numbers: depths of the stages, kernels and expansions of the blocks."""
REFERENCE = np.asarray([-70.0, 600.0])
"""Of hypervolumes: accuracy (negated, percent) and MACs (millions)."""


@dataclass(frozen=True)
class Rows:
    """Distinct sub-networks; measurements of equal ones are averaged.

    Args:
        codes: int64 [rows, 45], the number of each choice; -1 where a block is left out and nothing is chosen.
        accuracy: float64 [rows], percent.
        macs: float64 [rows], millions.
    """

    codes: Codes
    accuracy: Array
    macs: Array


@cache
def space() -> Space:
    """Depths, and the kernel and expansion of each block while its stage is deep enough; in the order of `codes`."""
    places = [(stage, block) for stage in range(STAGES) for block in range(BLOCKS)]
    knobs = [Knob(f"depth:{stage}", DEPTHS) for stage in range(STAGES)]
    for kind, choices in (("kernel", KERNELS), ("width", EXPANSIONS)):
        for stage, block in places:
            deep = tuple(depth for depth in DEPTHS if depth > block)
            when = {} if deep == DEPTHS else {f"depth:{stage}": deep}
            knobs.append(Knob(f"{kind}:{stage}.{block}", choices, when=when))
    return Space(knobs)


def masked(codes: Codes) -> Codes:
    """A copy with -1 for the kernels and expansions of blocks that the depth of their stage leaves out.

    Args:
        codes: int64 [rows, 45].
    """
    depth = codes[:, :STAGES, None] + DEPTHS[0]
    out = (np.arange(BLOCKS) >= depth).reshape(len(codes), -1)
    return np.where(np.concatenate([np.zeros((len(codes), STAGES), dtype=bool), out, out], axis=1), -1, codes)


def one_hot(codes: Codes) -> Array:
    """Three columns per choice, all zero where it is -1: float64 [rows, 135]."""
    return np.asarray((codes[:, :, None] == np.arange(3)).reshape(len(codes), -1), dtype=np.float64)


@cache
def rows() -> Rows:
    """Every distinct sub-network of the three traces, in the order they were first measured.

    Raises:
        PliantError: `PLIANT_DATA` does not lead to the files.
    """
    found: dict[bytes, list[tuple[float, float]]] = {}
    for name in FILES:
        path = Path(os.environ.get("PLIANT_DATA", "data")) / "nas" / f"{name}.csv"
        if not path.exists():
            raise PliantError("not found", where=str(path), fix="set PLIANT_DATA to the folder that holds nas/")
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                code = masked(_codes(ast.literal_eval(row["Sub-network"])))
                measured = float(row["Top-1 Acc (%)"]), float(row["MACs"]) / 1e6
                found.setdefault(code.tobytes(), []).append(measured)
    codes = np.stack([np.frombuffer(key, dtype=np.int64) for key in found])
    values = np.stack([np.mean(measured, axis=0) for measured in found.values()])
    return Rows(codes, values[:, 0], values[:, 1])


def _codes(architecture: dict[str, Any]) -> Codes:
    parts = (("d", DEPTHS), ("ks", KERNELS), ("e", EXPANSIONS))
    return np.asarray([[choices.index(value) for name, choices in parts for value in architecture[name]]])


@dataclass(frozen=True)
class Surrogate:
    """Stands in for measuring: gradient boosting fitted to all rows, noise that is fixed per architecture, exact MACs.

    Args:
        model: predicts accuracy from one-hot rows.
        residuals: of the model on its rows; each architecture gets one of them by the hash of its code.
        weights: of a linear model of MACs over (kernel, expansion) of every block, which reproduces every row.
    """

    model: Any
    residuals: Array
    weights: Array

    def costs(self, codes: Codes) -> Array:
        """Accuracy, negated, and MACs: float64 [rows, 2], both smaller is better. Takes codes masked or not."""
        codes = masked(codes)
        picks = [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "big") for row in codes]
        noise = self.residuals[np.asarray(picks, dtype=np.uint64) % np.uint64(len(self.residuals))]
        return np.stack([-(self.model.predict(one_hot(codes)) + noise), _blocks(codes) @ self.weights], axis=1)


def _blocks(codes: Codes) -> Array:
    kernels, expansions = codes[:, STAGES : STAGES + PLACES], codes[:, STAGES + PLACES :]
    joint = np.where(kernels < 0, -1, 3 * kernels + expansions)
    hot = (joint[:, :, None] == np.arange(9)).reshape(len(codes), -1)
    return np.asarray(np.concatenate([hot, np.ones((len(codes), 1))], axis=1), dtype=np.float64)


@cache
def surrogate() -> Surrogate:
    """Fitted in a few seconds; deterministic.

    Raises:
        PliantError: as `rows`, or MACs that are no sum over blocks.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    data = rows()
    model = GradientBoostingRegressor(
        n_estimators=1000, max_depth=3, learning_rate=0.05, subsample=0.5, max_features=0.3, random_state=0
    )
    model.fit(one_hot(data.codes), data.accuracy)
    residuals = data.accuracy - model.predict(one_hot(data.codes))
    weights = np.asarray(np.linalg.lstsq(_blocks(data.codes), data.macs, rcond=None)[0], dtype=np.float64)
    if np.abs(_blocks(data.codes) @ weights - data.macs).max() > 1e-6:
        raise PliantError("MACs are no sum over blocks", where="nas")
    return Surrogate(model, residuals - residuals.mean(), weights)
