"""The default predictor on measured sub-networks: how well it ranks those that it did not see, and what it promises."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench import _nas as nas
from bench._common import Outcome
from pliant.search import codes as c
from pliant.search.predictors import fit_process, fit_ridge
from pliant.search.predictors.quality import kendall_tau

REQUIRED = ("tau_100", "tau_50", "coverage_90")
SPLITS = 20
SIZES = (50, 100)
SHARE = 0.9

Fit = Callable[..., Any]


def judged(fit: Fit, codes: nas.Codes, targets: nas.Array, *, size: int, splits: int = SPLITS) -> dict[str, float]:
    """Means over random splits: `size` rows to learn from, all others to judge by.

    Args:
        fit: a predictor of encoded configs.
        codes: int64 [rows, knobs].
        targets: [rows].
        size: rows to learn from.
        splits: seeds 0, 1, ...
    """
    hot, levels = c.one_hot(nas.space(), codes), c.levels(nas.space(), codes)
    found: dict[str, list[float]] = {"tau": [], "error": [], "coverage": []}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(targets))
        seen, new = order[:size], order[size:]
        model = fit(hot[seen], levels[seen], targets=targets[seen])
        guessed = model.mean(hot[new], levels[new])
        low, high = model.interval(hot[new], levels[new], SHARE)
        found["tau"].append(kendall_tau(guessed, targets[new]))
        found["error"].append(float(np.abs(guessed - targets[new]).mean()))
        found["coverage"].append(float(((low <= targets[new]) & (targets[new] <= high)).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def plain_tau(targets: nas.Array, size: int, splits: int = SPLITS) -> float:
    """The baseline: scikit-learn's ridge on the one-hot choices, its strength chosen on the rows it learns from."""
    from sklearn.linear_model import RidgeCV

    hot = nas.one_hot(nas.rows().codes)
    taus = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(targets))
        model = RidgeCV(np.logspace(-2, 3, 20)).fit(hot[order[:size]], targets[order[:size]])
        taus.append(kendall_tau(model.predict(hot[order[size:]]), targets[order[size:]]))
    return float(np.mean(taus))


def run(splits: int = SPLITS) -> Outcome:
    """The row."""
    data = nas.rows()
    ours = {size: judged(fit_ridge, data.codes, data.accuracy, size=size, splits=splits) for size in SIZES}
    process = {size: judged(fit_process, data.codes, data.accuracy, size=size, splits=splits) for size in SIZES}
    figures = {f"tau_{size}": ours[size]["tau"] for size in SIZES}
    figures |= {"coverage_90": ours[100]["coverage"], "coverage_90_from_50": ours[50]["coverage"]}
    figures |= {f"error_points_{size}": ours[size]["error"] for size in SIZES}
    figures |= {f"process_tau_{size}": process[size]["tau"] for size in SIZES}
    figures["process_coverage_90"] = process[100]["coverage"]
    return Outcome(
        figures, nas.DATA, tuple(range(splits)),
        baseline={f"tau_{size}": plain_tau(data.accuracy, size, splits) for size in SIZES},
        settings={
            "predictor": "fit_ridge, which the default searcher uses; its view, pairs and strength are chosen by"
            " leave-one-out errors on the rows it learns from",
            "process": "fit_process, a Gaussian process", "splits": splits,
            "rows": "distinct sub-networks of all three traces; blocks that are left out count as absent",
            "baseline": "scikit-learn RidgeCV on the one-hot choices, absent blocks all zero",
        },
    )  # fmt: skip
