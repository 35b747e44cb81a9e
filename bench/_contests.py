"""Two ways of training one family, at the same CPU cost and with the same learning rates to choose from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from bench import _families as families
from bench._costs import step_ratio
from bench._families import Ask, Job, Task
from bench.train_once import SEEDS, SHARES, by_size, compared
from pliant.core import Config, seeded
from pliant.data import Dataset
from pliant.elastic import Elastic
from pliant.elastic.recipes._sizes import near_a_size

_DRAWS = 3000


@dataclass(frozen=True)
class Duel:
    """A way of training against a rival.

    Args:
        task: data and whole network.
        ours, rival: names of recipes, as `Job` takes them.
        epochs: of ours; the rival's follow from what a step of either costs.
        rates: learning rates to choose from.
        batch_size, precision: of both.
    """

    task: Task
    ours: str
    rival: str
    epochs: int
    rates: tuple[float, ...]
    batch_size: int = 32
    precision: str = "float32"

    def job(self, seed: int, lr: float) -> Job:
        """A training of ours."""
        return Job(self.task, self.epochs, lr, self.batch_size, seed, recipe=self.ours, precision=self.precision)


@dataclass(frozen=True)
class Fought:
    """What a duel shows.

    Args:
        figures: by name: gain with its 95 % interval, at the worst size, on uniform draws; the ratio of costs.
        rival: the rival's accuracy by size, mean over seeds.
        cpu_seconds: of all trainings.
        settings: for the reader.
    """

    figures: dict[str, float]
    rival: dict[str, float]
    cpu_seconds: float
    settings: dict[str, Any]


def fought(duel: Duel, picks: Sequence[Config], data: Dataset) -> Fought:
    """A duel from the first training to the last figure; test samples are read once, after all choices.

    Args:
        duel: who against whom.
        picks: one sub-network for each of `SHARES`.
        data: the task's.
    """
    ours = [duel.job(seed, lr) for lr in duel.rates for seed in SEEDS]
    theirs = equally_dear(ours, duel.rival, data)
    sides = [_at_its_best(jobs, picks) for jobs in (ours, theirs)]
    best = [side[0] for side in sides]
    print(f"  {duel.ours} takes {best[0].lr:g}, {duel.rival} {best[1].lr:g}", flush=True)
    cost = {job: families.cost(job) for job in (*ours, *theirs)}
    even, random = ([measured(side, configs) for side in sides] for configs in (picks, uniform(duel.task)))
    figures = gains(duel.task, even[0], even[1]) | {
        "gain_on_uniform_draws_points": compared(duel.task, random[0], random[1])["mean_gap"],
        "cost_ratio": mean(cost[a] / cost[b] for a, b in zip(*sides, strict=True)),
        "subnetworks": families.family(duel.task).space.size,
    }
    figures |= {f"accuracy_at_{share:g}_flops": value for share, value in zip(SHARES, by_size(even[0]), strict=True)}
    settings = {
        "task": duel.task.what(), "recipe": repr(best[0].made_recipe()), "rival": repr(best[1].made_recipe()),
        "epochs": duel.epochs, "rival_epochs": best[1].epochs, "rates": list(duel.rates),
        "rate": best[0].lr, "rival_rate": best[1].lr, "picks": [dict(pick) for pick in picks],
        "cpu_seconds_of_a_family": mean(cost[job] for job in sides[0]),
    }  # fmt: skip
    rival = {f"accuracy_at_{share:g}_flops": value for share, value in zip(SHARES, by_size(even[1]), strict=True)}
    return Fought(figures, rival, sum(cost.values()), settings)


def _at_its_best(jobs: Sequence[Job], picks: Sequence[Config]) -> list[Job]:
    """Those of the learning rate whose families are best on the validation split, on average over seeds and picks."""
    asks = {lr: [Ask(job, "val", tuple(picks)) for job in jobs if job.lr == lr] for lr in {job.lr for job in jobs}}
    return [ask.job for ask in asks[families.best_rate(asks)]]


def gains(
    task: Task, ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]
) -> dict[str, float]:
    """The paired comparison of `train-once`, under this row's names."""
    found = compared(task, ours, theirs)
    names = {"mean_gap": "gain", "mean_gap_low": "gain_low", "mean_gap_high": "gain_high", "worst_gap": "worst_gain"}
    return {f"{name}_points": found[key] for key, name in names.items()}


def measured(jobs: Sequence[Job], configs: Sequence[Config]) -> dict[tuple[int, int], float]:
    """Test quality by seed and size."""
    return {(seed, n): value for seed, job in zip(SEEDS, jobs, strict=True)
            for n, value in enumerate(families.qualities(job, configs, "test"))}  # fmt: skip


# -- sizes ------------------------------------------------------------------------------------------------------------


def drawn_picks(net: Elastic, shares: Sequence[float]) -> list[Config]:
    """Configs spread over FLOPs in a space that is too large to look through, from sizes alone.

    Out of draws in which every kind of knob has a size of its own, and every knob lies near it: for each share of the
    whole network's FLOPs the nearest one.
    """
    generator, whole = seeded(0, "bench", "picks"), net.space.largest()
    drawn = [whole, *(Config(near_a_size(list(net.space), generator, spread=0.1)) for _ in range(_DRAWS))]
    full = net.cost(whole).flops
    cost = {config: net.cost(config).flops / full for config in drawn}
    return [min(cost, key=lambda config: abs(cost[config] / share - 1)) for share in shares]


def uniform(task: Task) -> list[Config]:
    """As many sub-networks as there are picks, every knob drawn by itself: what the plain supernet is trained on."""
    space, generator = families.family(task).space, seeded(0, "bench", "uniform")
    return [space.sample(generator) for _ in SHARES]


# -- costs ------------------------------------------------------------------------------------------------------------


def equally_dear(ours: Sequence[Job], rival: str, data: Dataset) -> list[Job]:
    """The rival's jobs, with as many epochs as cost the same CPU time; one for each of ours.

    The ratio of step costs is kept in the cache, so that a row that goes on trains the same.
    """
    first = ours[0]
    ratio = step_ratio(first, replace(first, recipe=rival), data)
    return [replace(job, recipe=rival, epochs=max(1, round(job.epochs * ratio))) for job in ours]
