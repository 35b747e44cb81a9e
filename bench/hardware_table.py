"""A description of this machine, made in about a minute, against sub-networks measured afterwards."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import pliant
from bench._common import Outcome, one_thread
from pliant.elastic import Elastic
from pliant.export import ProbeSettings
from pliant.export.latency_model import rank_correlation
from pliant.export.probes import USUAL, spread_configs

REQUIRED = ("rank_correlation", "median_relative_error", "seconds")
SEED = 1
NETWORKS = 40
_BATCH = 10  # networks timed side by side


def families() -> dict[str, Elastic]:
    """Untrained: latency does not depend on the values of weights."""
    image = torch.zeros(2, 1, 28, 28)
    resnet = pliant.nets.resnet((1, 28, 28), 10, blocks=(1, 1, 1), width=32)
    dwsep = pliant.nets.dwsep((1, 28, 28), 10, stem=32, channels=(64, 128, 128, 256), strides=(1, 2, 1, 2))
    return {"resnet": pliant.elastic(resnet, image), "dwsep": pliant.elastic(dwsep, image)}


def judged(net: Elastic, seconds: float, settings: ProbeSettings, networks: int) -> dict[str, Any]:
    """Describe, predict, and only then measure networks that are no probes."""
    cpu = pliant.hardware("cpu", threads=1)
    begun = time.perf_counter()
    described = cpu.describe(net, seconds=seconds, settings=settings, progress=False)
    took = time.perf_counter() - begun
    configs = spread_configs(net.space, networks + 2, seed=SEED)[2:]
    modules = {str(number): net.extract(config) for number, config in enumerate(configs)}
    predicted = described.compare(modules, net.example)
    measured: dict[str, float] = {}
    for part in np.array_split(sorted(modules), max(1, len(modules) // _BATCH)):
        found = cpu.compare({name: modules[name] for name in part}, net.example)
        measured |= {name: found[name].median_ms for name in part}
    ours = np.asarray([predicted[name].median_ms for name in modules])
    truth = np.asarray([measured[name] for name in modules])
    flops = np.asarray([float(net.cost(config).flops) for config in configs])
    scale = float(np.exp(np.median(np.log(truth / flops))))
    return {
        "rank_correlation": rank_correlation(truth, ours),
        "median_relative_error": float(np.median(np.abs(ours / truth - 1))),
        "seconds": took, "stated_error": described.model.median_relative_error,
        "noise": described.description.noise, "range": float(truth.max() / truth.min()),
        "flops_rank_correlation": rank_correlation(truth, flops),
        "flops_median_relative_error": float(np.median(np.abs(flops * scale / truth - 1))),
    }  # fmt: skip


def run(
    seconds: float = 40.0, settings: ProbeSettings = USUAL, networks: int = NETWORKS,
    names: Sequence[str] = ("resnet", "dwsep"),
) -> Outcome:  # fmt: skip
    """The row: the worst of the families.

    Args:
        seconds: of measuring, for each description.
        settings: of the probes.
        networks: measured afterwards.
        names: of families.
    """
    one_thread()
    found = {name: judged(net, seconds, settings, networks) for name, net in families().items() if name in names}
    worst = {"rank_correlation": min, "median_relative_error": max, "seconds": max, "noise": max, "range": min}
    figures = {figure: pick(row[figure] for row in found.values()) for figure, pick in worst.items()}
    figures |= {f"{name}_stated_error": row["stated_error"] for name, row in found.items()}
    return Outcome(
        figures, "sub-networks of a resnet and a separable-convolution network for 28 x 28 images", (SEED,),
        baseline={
            "rank_correlation": min(row["flops_rank_correlation"] for row in found.values()),
            "median_relative_error": max(row["flops_median_relative_error"] for row in found.values()),
        },
        settings={
            "baseline": "latency in proportion to FLOPs, the factor fitted to the very networks it is judged on",
            "rank_correlation": "Kendall's, over pairs that differ by at least 10 %", "networks": networks,
            "probes": repr(settings), "seconds_of_measuring": seconds, "families": found,
            "wall": "all figures are wall times of one thread",
        },
    )  # fmt: skip
