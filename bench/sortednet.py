"""sortednet: 160 sub-networks of one family, all measured: what share of the full network's accuracy they keep.

The families are those of `train-once`: its default recipe, the residual network on Fashion-MNIST, the learning rate
chosen as there, three seeds. The 160 sub-networks are chosen from their sizes alone: evenly spaced in FLOPs from the
smallest to the whole network, at each size one at random of the nearest ones, so that widths and depth come in all
mixtures. Each is measured on the test images with BatchNorm statistics of its own. `kept_share` is their mean accuracy
over that of the full network, `worst_kept_share` the least of them (means over seeds). The baseline are the same 160,
cut out of the largest network trained alone (seed 0), its units sorted by magnitude: no nested training.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import mean
from typing import Any

import torch

from bench import _families as families
from bench._common import Outcome, cached, in_workers, one_thread
from bench._families import Job
from bench.train_once import CONTESTS, DEFAULT, SEEDS, SHARES, alone_by_rate, by_rate
from pliant.core import Config, seeded
from pliant.data import Dataset
from pliant.elastic import Elastic

REQUIRED = ("subnetworks", "kept_share", "worst_kept_share", "smallest_flops_share")
VERSION = 1  # of how a sub-network is measured; raise it when such code changes
CONTEST = CONTESTS["resnet"]
COUNT = 160
NEAREST = 8
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Edges of the shares of FLOPs in the table by size."""


@dataclass(frozen=True)
class Probe:
    """One measurement: a sub-network of a trained family, or of the largest network trained alone."""

    job: Job
    config: tuple[tuple[str, int | bool], ...]

    def what(self) -> dict[str, Any]:
        """The content by which it is cached."""
        told = {"test_quality": self.job.what(), "config": dict(self.config)}
        return told | {"calibration_images": families.CALIBRATION_IMAGES, "version": VERSION}


def spread(net: Elastic, count: int = COUNT) -> list[tuple[Config, float]]:
    """Different configs with their shares of the whole network's FLOPs, evenly spaced from smallest to largest."""
    whole, generator = net.space.largest(), seeded(0, "bench", "sortednet")
    full = net.cost(whole).flops
    left = {config: net.cost(config).flops / full for config in net.space.configs()}
    least = min(left.values())
    chosen = [(config, left.pop(config)) for config in (net.space.smallest(), whole)]
    for step in range(1, count - 1):
        share = least + (1 - least) * step / (count - 1)
        near = sorted(left, key=lambda config: abs(left[config] - share))[:NEAREST]
        config = near[int(torch.randint(len(near), (), generator=generator))]
        chosen.append((config, left.pop(config)))
    return sorted(chosen, key=lambda row: row[1])


def measure(probe: Probe) -> dict[str, Any]:
    """Accuracy on the test images, or what the cache knows of it; a worker reads a network and the data once."""

    def make(folder: object) -> dict[str, float]:
        net, data, begun = _family(probe.job), _data(probe.job), time.process_time()
        module = families.calibrated(net, dict(probe.config), data, probe.job.seed)
        quality = families.quality(probe.job.task, module, data.test)
        return {"quality": quality, "cpu_seconds": time.process_time() - begun}

    return cached(probe.what(), make)[1]


@cache
def _data(job: Job) -> Dataset:
    return families.dataset(job.task)


@cache
def _family(job: Job) -> Elastic:
    """The trained family; of a network alone the same made elastic, its units sorted by magnitude."""
    trained = families.trained(job)
    if isinstance(trained, Elastic):
        return trained
    net = families.family(job.task, job.seed)
    net.load_state_dict(trained.state_dict(), strict=True)
    net.sort_units()
    return net.eval()


def qualities(job: Job, chosen: Sequence[tuple[Config, float]]) -> tuple[list[float], float]:
    """Accuracy of every chosen sub-network, measured by two workers, and the CPU seconds that it took."""
    found = in_workers(measure, [Probe(job, tuple(sorted(config.items()))) for config, _ in chosen])
    return [float(facts["quality"]) for facts in found], sum(float(facts["cpu_seconds"]) for facts in found)


def kept(values: Sequence[float]) -> list[float]:
    """Shares of what the last one, the whole network, has."""
    return [value / values[-1] for value in values]


def bands(shares: Sequence[float], columns: Mapping[str, Sequence[float]]) -> list[dict[str, float | str]]:
    """Means and minima by size, one row for each band of FLOPs that holds any."""
    rows: list[dict[str, float | str]] = []
    for low, high in pairwise(BANDS):
        inside = [n for n, share in enumerate(shares) if low < share <= high]
        if inside:
            row: dict[str, float | str] = {"FLOPs": f"{low:g} to {high:g}", "subnetworks": len(inside)}
            for name, values in columns.items():
                row |= {name: mean(values[n] for n in inside), f"worst {name}": min(values[n] for n in inside)}
            rows.append(row)
    return rows


def jobs() -> tuple[list[Job], Job, float]:
    """The default families of `train-once`, one a seed, the largest network alone, and the CPU seconds of all trainings
    there were; the cache of `train-once` has them."""
    picks = families.picks(families.family(CONTEST.task), SHARES)
    asked = by_rate(CONTEST, DEFAULT, picks), alone_by_rate(CONTEST, picks[0])
    rate, rate_alone = (families.best_rate(tried) for tried in asked)
    cpu = sum(families.cost(ask.job) for tried in asked for asks in tried.values() for ask in asks)
    return [CONTEST.family(DEFAULT, seed, rate) for seed in SEEDS], CONTEST.alone(picks[0], SEEDS[0], rate_alone), cpu


def run() -> Outcome:
    """The whole row."""
    one_thread()
    chosen = spread(families.family(CONTEST.task))
    trained, alone, cpu = jobs()
    *found, (plain, plain_cpu) = [qualities(job, chosen) for job in (*trained, alone)]
    cpu += plain_cpu + sum(seconds for _, seconds in found)
    means = [mean(values) for values in zip(*(values for values, _ in found), strict=True)]
    shares = [share for _, share in chosen]
    figures = {"subnetworks": len(chosen), "smallest_flops_share": shares[0], **figures_of(means)}
    ours = kept(means)
    worst = chosen[ours.index(min(ours))]
    settings = {
        "task": CONTEST.task.what(), "recipe": repr(trained[0].made_recipe()), "epochs": trained[0].epochs,
        "rate": trained[0].lr, "baseline": "the largest network trained alone, units sorted by magnitude",
        "by_size": bands(shares, {"kept": ours, "kept by the baseline": kept(plain)}),
        "worst": dict(worst[0]), "worst_flops_share": worst[1],
        "subnetworks": [{"config": dict(config), "flops_share": share, "kept": value}
                        for (config, share), value in zip(chosen, ours, strict=True)],
    }  # fmt: skip
    data = "Fashion-MNIST, 10,000 training, 10,000 test images"
    return Outcome(figures, data, SEEDS, figures_of(plain), cpu_seconds=cpu, settings=settings)


def figures_of(values: Sequence[float]) -> dict[str, float]:
    """What is told of accuracies by size, the whole network's last."""
    shares = kept(values)
    told = {"kept_share": mean(shares), "worst_kept_share": min(shares), "smallest_kept_share": shares[0]}
    return told | {"full_accuracy": values[-1]}
