"""What a training step costs: two trainings side by side, step by step, so that a busy machine slows both alike."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from bench import _families as families
from bench._common import cached, interleaved, one_thread
from bench._families import Job
from pliant.core import seeded
from pliant.data import Dataset
from pliant.learn import Plain, Recipe
from pliant.learn.losses import loss_function

VERSION = 2  # of how costs are compared; raise it when such code changes
PROBED_STEPS = 500  # a recipe draws a sub-network in each of them, so the mean is good to some 2 %


def training_ratio(job: Job, other: Job, data: Dataset) -> float:
    """CPU time of a whole training over another's, of the same task and batch size."""
    return step_ratio(job, other, data) * job.epochs / other.epochs


def step_ratio(job: Job, other: Job, data: Dataset) -> float:
    """CPU time of a step of one training over another's; steps alternate, spread over the whole schedule.

    Measured once and kept in the cache, so that a row that goes on does the same.
    """
    what = {"step_ratio": [job.what(), other.what()], "steps": PROBED_STEPS, "version": VERSION}

    def make(folder: Path) -> dict[str, float]:
        one_thread()
        times = interleaved({"ours": stepping(job, data), "other": stepping(other, data)}, PROBED_STEPS)
        return {name: mean(each) for name, each in times.items()}

    facts = cached(what, make)[1]
    return float(facts["ours"]) / float(facts["other"])


def stepping(job: Job, data: Dataset) -> Callable[[], None]:
    """A function that makes one step after another of a training, on one batch of the right size."""
    net: nn.Module
    recipe: Recipe
    if job.config is None:
        net, recipe = families.family(job.task, job.seed), job.made_recipe()
    else:
        net, recipe = families.alone(job.task, dict(job.config), job.seed), Plain()
    net.train()
    ((inputs, targets),) = islice(data.train.batches(job.batch_size), 1)
    loss_fn, generator = loss_function(data.loss), seeded(job.seed, "bench", "probe")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    places = iter([(number + 0.5) / (PROBED_STEPS + 1) for number in range(PROBED_STEPS + 1)])
    low = job.precision == "bfloat16"

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = recipe.at(next(places)).step(net, (inputs, targets), loss_fn, generator=generator)
        loss.backward()  # type: ignore[no-untyped-call]
        recipe.update(net, optimizer)
        optimizer.zero_grad()

    step()  # the first one makes the optimizer's state
    return step
