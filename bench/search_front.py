"""search-front: 60 evaluations of a real trained family against all of its sub-networks, measured one by one.

The family is the residual one of `train-once` on Fashion-MNIST at half its width. A part of its space (the ends of
every knob and some of the middle) is measured whole, once: accuracy on 6,000 validation images, BatchNorm re-estimated,
and FLOPs. On 2,000 images, which the full width would leave time for, luck decides what is on the front, and no search
can predict luck. Searches are then replayed on what was measured; the share is the hypervolume of what a search found
over that of the exact front, with the worst accuracy and the most FLOPs as reference.
"""

from dataclasses import dataclass, replace
from typing import Any

from bench import _families as families
from bench._common import Outcome, one_thread
from bench._exhaustive import Restricted, Table, measured, medians, part_of
from bench._families import Job, Task
from bench.train_once import CONTESTS, DEFAULT
from pliant.search import Proposer, Random, Ridge, SearchSettings

REQUIRED = ("configs", "hypervolume_share", "random_hypervolume_share")
LEAST, EVALUATIONS = 1000, 60
SEEDS = tuple(range(11))
OBJECTIVES = ("accuracy", "flops")
SETTINGS = SearchSettings(batch_size=256, calibration_batches=4, val_limit=6000, workers=2, progress=False)


@dataclass(frozen=True)
class Whole:
    """A measured family.

    Args:
        table: all configs and their costs.
        flops_range: largest over smallest.
        seconds: that the measurements took.
        settings: for the reader.
    """

    table: Table
    flops_range: float
    seconds: float
    settings: dict[str, Any]


def whole(job: Job, *, least: int = LEAST, limit: int | None = None) -> Whole:
    """The family of a training, measured; from the cache where that was done."""
    net: Any = families.trained(job)
    data = families.dataset(job.task)
    space = part_of(net.space, least)
    what = {
        "training": job.what(), "space": space.to_dict(), "objectives": list(OBJECTIVES), "limit": limit,
        "settings": [SETTINGS.batch_size, SETTINGS.calibration_batches, SETTINGS.val_limit],
    }  # fmt: skip
    front, seconds = measured(
        Restricted(net, space), data, objectives=OBJECTIVES, settings=SETTINGS, what=what, limit=limit
    )
    flops = [point.values["flops"] for point in front.trials]
    told = {"space": space.to_dict(), "network": job.what(), "exact_front": len(front)}
    return Whole(Table.of(space, front), max(flops) / min(flops), seconds, told)


def family() -> Job:
    """The family that is searched: trained as those of `train-once` are."""
    contest = replace(CONTESTS["resnet"], task=Task("fashion-10k", (1, 1, 1), 16))
    return contest.family(DEFAULT, 0, contest.rates[1])


def judged(table: Table, *, evaluations: int = EVALUATIONS, seeds: tuple[int, ...] = SEEDS) -> dict[str, float]:
    """Shares of the hypervolume by searcher."""
    contestants: dict[str, Proposer] = {"": Ridge(), "random_": Random()}
    found = medians(table, contestants, evaluations, seeds=seeds)
    return {f"{name}hypervolume_share": share for name, share in found.items()}


def run() -> Outcome:
    """The whole row."""
    one_thread()
    found = whole(family())
    figures = {
        "configs": len(found.table.costs), "flops_range": found.flops_range, "evaluations": EVALUATIONS,
        **judged(found.table),
    }  # fmt: skip
    baseline = {"hypervolume_share": figures["random_hypervolume_share"]}
    settings = {**found.settings, "searchers": [repr(Ridge()), repr(Random())]}
    data = f"Fashion-MNIST ({family().task.data}), {SETTINGS.val_limit} validation images"
    return Outcome(figures, data, SEEDS, baseline, cpu_seconds=found.seconds, settings=settings)
