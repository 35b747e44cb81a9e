"""digits: one trained family against separately trained networks, five folds of the 8 x 8 digits.

Every contestant has the same epochs and the same two learning rates to choose from, by validation accuracy in each
fold. Sub-networks are picked from their sizes alone; a separate network has a pick's sizes and a fresh start.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from bench import _families as families
from bench._common import Outcome, in_workers, one_thread
from bench._families import Job, Task
from pliant.core import Config
from pliant.learn import evaluate

REQUIRED = ("mean_gap_points", "worst_gap_points", "flops_range", "picked")
TASK = Task("digits", blocks=(1, 1, 1), width=16)
SHARES = (1.0, 0.5, 0.25, 0.12, 0.06)  # of the whole network's FLOPs
RATES = (3e-3, 1e-2)
EPOCHS = 40
FOLDS = range(5)


def contestants(configs: Sequence[Config], fold: int) -> list[list[Job]]:
    """For the family (first) and every pick alone, a job at each learning rate."""
    base = Job(replace(TASK, fold=fold), EPOCHS, RATES[0], batch_size=64, seed=fold)
    first = [base, *(replace(base, config=tuple(sorted(config.items()))) for config in configs)]
    return [[replace(job, lr=lr) for lr in RATES] for job in first]


def run() -> Outcome:
    """The whole row."""
    one_thread()
    net = families.family(TASK)
    configs = families.picks(net, SHARES)
    flops = [net.cost(config).flops for config in configs]
    todo = [job for fold in FOLDS for each in contestants(configs, fold) for job in each]
    facts = dict(zip(todo, in_workers(families.run_job, todo), strict=True))
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for fold in FOLDS:
        data = families.dataset(replace(TASK, fold=fold))
        family, *separate = contestants(configs, fold)
        ours.append(families.qualities(families.best_family(family, configs), configs, "test"))
        best = [max(each, key=lambda job: float(facts[job]["val"])) for each in separate]
        theirs.append([evaluate(families.trained(job), data.test) for job in best])
    gaps = [100 * (a - b) for both in zip(ours, theirs, strict=True) for a, b in zip(*both, strict=True)]
    figures: dict[str, float] = {
        "picked": len(configs), "subnetworks": net.space.size, "flops_range": max(flops) / min(flops),
        "mean_gap_points": mean(gaps), "worst_gap_points": min(gaps),
        "worst_pick_gap_points": min(mean(gaps[n :: len(configs)]) for n in range(len(configs))),
    }  # fmt: skip
    baseline = {}
    for number, share in enumerate(SHARES):
        figures[f"accuracy_at_{share:g}_flops"] = mean(each[number] for each in ours)
        baseline[f"accuracy_at_{share:g}_flops"] = mean(each[number] for each in theirs)
    settings = {
        "network": "pliant.nets.resnet((1, 8, 8), 10, blocks=(1, 1, 1), width=16)",
        "recipe": repr(contestants(configs, 0)[0][0].made_recipe()),
        "epochs": EPOCHS, "learning_rates_tried": list(RATES), "batch_size": 64, "optimizer": "adamw",
        "picks": "most even config within 5 % of each share of FLOPs, chosen before any training",
        "worst_gap_points": "of all picks and folds; worst_pick: of the means over folds",
        "configs": [dict(config) for config in configs],
    }  # fmt: skip
    spent = sum(float(fact["cpu_seconds"]) for fact in facts.values())
    told = "8 x 8 digits of scikit-learn, 1,797 images, 5 stratified folds"
    return Outcome(figures, told, list(FOLDS), baseline, cpu_seconds=spent, settings=settings)
