"""train-once: one trained family against separately trained networks of the same sizes, at full length and equal cost.

Three tasks: Fashion-MNIST with a residual and with a depthwise-separable network, a quarter of tiny Shakespeare with a
small GPT; so much data, and so many epochs, that more of them bring the largest network alone next to nothing
(`longer_gain`: what half as many more bring). Six sub-networks each, picked from their sizes alone. Every contestant
has the same two learning rates to choose from, by validation quality over all seeds (a family by the mean over its
picks; a network between the largest and the smallest takes the rate of the nearer one). A recipe's cost ratio comes
from steps of it and of the largest network in turn. At equal cost, the separate networks share out the CPU time that
the family took, all with the same number of epochs. Test samples are read once, after all choices. Trainings are cached
one by one, so that a run that was stopped goes on where it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from bench import _families as families
from bench._common import Outcome, in_workers, one_thread
from bench._costs import training_ratio
from bench._families import Ask, Job, Task
from pliant.core import Config

REQUIRED = (
    "default_cost_ratio", "default_mean_gap_points", "default_worst_gap_points", "default_mean_gap_nats",
    "better_than_separate_at_equal_cost",
)  # fmt: skip
SHARES = (1.0, 0.7, 0.5, 0.35, 0.2, 0.12)  # of the whole network's FLOPs
SEEDS = (0, 1, 2)
DEFAULT = "nested"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % by the number of seeds."""


@dataclass(frozen=True)
class Contest:
    """A task, and how long is long enough for it.

    Args:
        task: data and whole network.
        epochs: of a network alone.
        rates: learning rates to choose from.
        batch_size: of everybody.
        family_epochs: of a family by recipe, as many as cost about 1.25 times the largest network alone.
        precision: of everybody: bfloat16 where that is faster.
    """

    task: Task
    epochs: int
    rates: tuple[float, float]
    batch_size: int
    family_epochs: Mapping[str, int]
    precision: str = "float32"

    def alone(self, config: Config, seed: int, lr: float, epochs: int | None = None) -> Job:
        """A network of a sub-network's sizes."""
        items = tuple(sorted(config.items()))
        return Job(self.task, epochs or self.epochs, lr, self.batch_size, seed, config=items, precision=self.precision)

    def family(self, recipe: str, seed: int, lr: float) -> Job:
        """A family."""
        epochs = self.family_epochs[recipe]
        return Job(self.task, epochs, lr, self.batch_size, seed, recipe=recipe, precision=self.precision)


RATES = (4e-3, 1e-2)
CONTESTS = {
    "resnet": Contest(
        Task("fashion-10k", (1, 1, 1), 32), 10, RATES, 32, {"nested": 19, "sandwich": 6}, precision="bfloat16"
    ),
    "dwsep": Contest(Task("fashion", (2, 1, 2, 1), 32, net="dwsep"), 12, RATES, 32, {"nested": 18}),
    "gpt": Contest(
        Task("shakespeare-quarter", (3,), 64, net="gpt"), 10, (2e-3, 5e-3), 16, {"nested": 21, "sandwich": 7}
    ),
}


def run() -> Outcome:
    """The whole row."""
    one_thread()
    told = {name: judged(name, contest) for name, contest in CONTESTS.items()}
    figures: dict[str, float] = {}
    for name, found in told.items():
        figures |= {f"{name}_{figure}": value for figure, value in found.figures.items()}
    images = [name for name, contest in CONTESTS.items() if contest.task.unit == "points"]
    texts = [name for name in CONTESTS if name not in images]
    shares = [value for found in told.values() for value in found.better]
    figures = {
        "default_cost_ratio": max(figures[f"{name}_{DEFAULT}_cost_ratio"] for name in CONTESTS),
        "default_mean_gap_points": mean(figures[f"{name}_{DEFAULT}_mean_gap"] for name in images),
        "default_worst_gap_points": min(figures[f"{name}_{DEFAULT}_worst_gap"] for name in images),
        "default_mean_gap_nats": mean(figures[f"{name}_{DEFAULT}_mean_gap"] for name in texts),
        "better_than_separate_at_equal_cost": mean(shares),
        **figures,
    }
    settings = {name: found.settings for name, found in told.items()}
    cpu = sum(found.cpu_seconds for found in told.values())
    data = "Fashion-MNIST, 10,000 and 20,000 training images; a quarter of tiny Shakespeare, sequences of 64 characters"
    return Outcome(figures, data, SEEDS, cpu_seconds=cpu, settings=settings)


@dataclass(frozen=True)
class Found:
    """What one task shows.

    Args:
        figures: by name.
        better: for each size whether the default is better than a separate network at equal total cost (1 or 0).
        cpu_seconds: of all trainings.
        settings: for the reader: picks, learning rates, the table.
    """

    figures: dict[str, float]
    better: list[int]
    cpu_seconds: float
    settings: dict[str, Any]


def judged(name: str, contest: Contest) -> Found:
    """One task from the first training to the last figure."""
    task, data = contest.task, families.dataset(contest.task)
    net = families.family(task)
    picks = families.picks(net, SHARES)
    rates = tuned(contest, picks)
    print(f"  {name}: learning rates {rates}", flush=True)
    separate = {(s, n): contest.alone(pick, s, rate_of(rates, n)) for s in SEEDS for n, pick in enumerate(picks)}
    longer = [contest.alone(picks[0], s, rates["largest"], round(1.5 * contest.epochs)) for s in SEEDS]
    trained = {recipe: [contest.family(recipe, s, rates[recipe]) for s in SEEDS] for recipe in contest.family_epochs}
    every = [*separate.values(), *longer, *(job for jobs in trained.values() for job in jobs)]
    facts = dict(zip(every, in_workers(families.run_job, every), strict=True))
    cost = {job: float(facts[job]["cpu_seconds"]) for job in every}

    total = mean(cost[job] for job in trained[DEFAULT])
    share = total / mean(sum(cost[separate[s, n]] for n in range(len(picks))) for s in SEEDS)
    short_epochs = max(1, round(share * contest.epochs))
    short = {at: replace(job, epochs=short_epochs) for at, job in separate.items()}
    in_workers(families.run_job, list(short.values()))
    asks = [Ask(job, "test") for job in (*separate.values(), *short.values())]
    asks += [Ask(job, "test", tuple(picks)) for jobs in trained.values() for job in jobs]
    in_workers(families.answer, asks)

    theirs, theirs_short = (
        {at: families.answer(Ask(job, "test"))[0] for at, job in jobs.items()} for jobs in (separate, short)
    )
    ends = [[families.answer(Ask(job, "val"))[0] for job in jobs] for jobs in ([separate[s, 0] for s in SEEDS], longer)]
    gains = [long - usual for usual, long in zip(*ends, strict=True)]
    figures: dict[str, float] = {
        "subnetworks": net.space.size, "epochs": contest.epochs, "short_epochs": short_epochs,
        "longer_gain": families.gap(task, mean(gains), 0.0),
    }  # fmt: skip
    better: list[int] = []
    table: dict[str, Any] = {"alone": by_size(theirs), f"alone, {short_epochs} epochs": by_size(theirs_short)}
    for recipe, jobs in trained.items():
        ours = {(s, n): value for s, job in zip(SEEDS, jobs, strict=True)
                for n, value in enumerate(families.qualities(job, picks, "test"))}  # fmt: skip
        table[recipe] = by_size(ours)
        figures |= {f"{recipe}_{key}": value for key, value in compared(task, ours, theirs).items()}
        figures[f"{recipe}_cost_ratio"] = training_ratio(jobs[0], separate[SEEDS[0], 0], data)
        equal = [families.gap(task, a, b) for a, b in zip(by_size(ours), by_size(theirs_short), strict=True)]
        figures[f"{recipe}_gap_at_equal_cost"] = mean(equal)
        if recipe == DEFAULT:
            better = [int(value > 0) for value in equal]
    settings = {
        "rates": rates, "shares": list(SHARES), "picks": [dict(pick) for pick in picks], "quality_by_size": table,
        "family_epochs": dict(contest.family_epochs), "unit": task.unit, "task": task.what(),
        "recipe": repr(trained[DEFAULT][0].made_recipe()),
    }  # fmt: skip
    return Found(figures, better, sum(cost.values()), settings)


Table = Mapping[tuple[int, int], float]
"""Quality by seed and size."""


def by_size(table: Table) -> list[float]:
    """Means over seeds, a number for each size."""
    return [mean(value for (_, n), value in table.items() if n == size) for size in range(len(SHARES))]


def compared(task: Task, ours: Table, theirs: Table) -> dict[str, float]:
    """Mean gap with its 95 % interval over seeds (paired), and the worst size's gap."""
    gaps = {at: families.gap(task, ours[at], theirs[at]) for at in ours}
    by_seed = [mean(gap for (s, _), gap in gaps.items() if s == seed) for seed in SEEDS]
    half = T_95[len(SEEDS)] * stdev(by_seed) / math.sqrt(len(SEEDS))
    return {
        "mean_gap": mean(by_seed), "mean_gap_low": mean(by_seed) - half, "mean_gap_high": mean(by_seed) + half,
        "worst_gap": min(by_size(gaps)), "worst_gap_of_a_seed": min(gaps.values()),
    }  # fmt: skip


def rate_of(rates: Mapping[str, float], size: int) -> float:
    """The learning rate of a network alone: that of the nearer end."""
    return rates["largest" if size < len(SHARES) / 2 else "smallest"]


def tuned(contest: Contest, picks: Sequence[Config]) -> dict[str, float]:
    """The best learning rate of every recipe and of the two ends alone, by the mean over seeds (and picks)."""
    found = {who: families.best_rate(alone_by_rate(contest, pick))
             for who, pick in {"largest": picks[0], "smallest": picks[-1]}.items()}  # fmt: skip
    return found | {who: families.best_rate(by_rate(contest, who, picks)) for who in contest.family_epochs}


def by_rate(contest: Contest, recipe: str, picks: Sequence[Config]) -> dict[float, list[Ask]]:
    """What is asked of a recipe's families to find its learning rate."""
    return {lr: [Ask(contest.family(recipe, s, lr), "val", tuple(picks)) for s in SEEDS] for lr in contest.rates}


def alone_by_rate(contest: Contest, config: Config) -> dict[float, list[Ask]]:
    """What is asked of a network trained alone to find its learning rate."""
    return {lr: [Ask(contest.alone(config, s, lr), "val") for s in SEEDS] for lr in contest.rates}
