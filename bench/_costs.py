"""What a training step costs: two trainings side by side, step by step, so that a busy machine slows both alike."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from bench import _families as families
from bench._common import cached, interleaved, one_thread
from bench._families import Job
from pliant.core import seeded
from pliant.data import Dataset
from pliant.learn import Batch, Plain, Recipe
from pliant.learn.losses import loss_function

VERSION = 3  # of how costs are compared; raise it when such code changes
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
        times = interleaved({"ours": _steps_of(job, data), "other": _steps_of(other, data)}, PROBED_STEPS)
        return {name: mean(each) for name, each in times.items()}

    facts = cached(what, make)[1]
    return float(facts["ours"]) / float(facts["other"])


def _steps_of(job: Job, data: Dataset) -> Callable[[], None]:
    net: nn.Module
    recipe: Recipe
    if job.config is None:
        net, recipe = families.family(job.task, job.seed), job.made_recipe()
    else:
        net, recipe = families.alone(job.task, dict(job.config), job.seed), Plain()
    batch = next(iter(data.train.batches(job.batch_size)))
    return stepping(net, recipe, batch, loss=data.loss, precision=job.precision, steps=PROBED_STEPS)


def stepping(
    net: nn.Module, recipe: Recipe, batch: Batch, *, loss: str, precision: str, steps: int
) -> Callable[[], None]:
    """A function that makes one training step after another, spread over the whole schedule, all on one batch.

    Args:
        net: is put in train mode and trained.
        recipe: what a step does.
        batch: inputs and targets of every step.
        loss: of the task, by name.
        precision: `float32` or `bfloat16`.
        steps: how often it will be called.
    """
    loss_fn, generator = loss_function(loss), seeded(0, "bench", "probe")
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-4)
    places = iter([(number + 0.5) / (steps + 1) for number in range(steps + 1)])

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            lost = recipe.at(next(places)).step(net, batch, loss_fn, generator=generator)
        lost.backward()  # type: ignore[no-untyped-call]
        recipe.update(net, optimizer)
        optimizer.zero_grad()

    step()  # the first one makes the optimizer's state
    return step
