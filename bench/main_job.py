"""main-job: one trained family against separately trained networks, on Fashion-MNIST (20,000 training images).

Five sub-networks are picked from their sizes alone. A separate network has a picked sub-network's sizes and a fresh
start. Family, largest and smallest network have the same two learning rates to choose from, by validation accuracy on
seed 0; the other sizes use the rate of the nearer end, the other seeds the chosen one. Test images are read once, after
all choices.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from bench import _families as families
from bench._common import Outcome, in_workers, one_thread
from bench._families import Job, Task
from pliant.core import Config
from pliant.learn import evaluate

REQUIRED = (
    "subnetworks", "picked", "flops_range", "mean_gap_points", "worst_gap_points", "cost_over_largest",
    "cost_over_separate", "latency_monotone",
)  # fmt: skip
TASK = Task("fashion", blocks=(1, 1, 1), width=16)
SHARES = (1.0, 0.6, 0.35, 0.2, 0.12)  # of the whole network's FLOPs
RATES = (6e-3, 1.5e-2)
EPOCHS, FAMILY_EPOCHS = 10, 45
SEEDS = (0, 1, 2)


def jobs(configs: Sequence[Config], seed: int) -> dict[int | None, Job]:
    """The family's job (under None) and one for each picked sub-network alone; with the first learning rate."""
    base = Job(TASK, EPOCHS, RATES[0], batch_size=128, seed=seed)
    found: dict[int | None, Job] = {None: replace(base, epochs=FAMILY_EPOCHS)}
    for number, config in enumerate(configs):
        found[number] = replace(base, config=tuple(sorted(config.items())))
    return found


def tuning_jobs(configs: Sequence[Config]) -> dict[int | None, list[Job]]:
    """The jobs on seed 0 of the family and of the two ends of the picks, one for each learning rate."""
    ends = (None, 0, len(configs) - 1)
    first = jobs(configs, SEEDS[0])
    return {who: [replace(first[who], lr=lr) for lr in RATES] for who in ends}


def tuned(configs: Sequence[Config]) -> dict[int | None, float]:
    """The learning rate of every contestant; a network between the two ends takes the rate of the nearer one."""
    tried = tuning_jobs(configs)
    todo = [job for each in tried.values() for job in each]
    facts = dict(zip(todo, in_workers(families.run_job, todo), strict=True))
    rates = {who: max(each, key=lambda job: float(facts[job]["val"])).lr for who, each in tried.items()}
    last = len(configs) - 1
    between = {number: rates[0 if number <= last / 2 else last] for number in range(1, last)}
    # A family is judged by all its picks.
    return rates | between | {None: families.best_family(tried[None], configs).lr}


def run() -> Outcome:
    """The whole row."""
    one_thread()
    net = families.family(TASK)
    configs = families.picks(net, SHARES)
    data = families.dataset(TASK)
    rates = tuned(configs)
    print(f"  learning rates: {rates}", flush=True)
    final = {s: {who: replace(job, lr=rates[who]) for who, job in jobs(configs, s).items()} for s in SEEDS}
    in_workers(families.run_job, [job for each in final.values() for job in each.values()])
    cost = {(s, who): families.cost(job) for s in SEEDS for who, job in final[s].items()}
    every = {job for each in final.values() for job in each.values()}
    every |= {job for each in tuning_jobs(configs).values() for job in each}
    flops = [net.cost(config).flops for config in configs]
    ours = {s: families.qualities(final[s][None], configs, "test") for s in SEEDS}
    theirs = {s: [evaluate(families.trained(final[s][n]), data.test) for n in range(len(configs))] for s in SEEDS}
    gaps = [100 * (a - b) for s in SEEDS for a, b in zip(ours[s], theirs[s], strict=True)]
    by_pick = [mean(gaps[n :: len(configs)]) for n in range(len(configs))]
    alone = {s: [cost[s, n] for n in range(len(configs))] for s in SEEDS}
    figures: dict[str, float] = {
        "subnetworks": net.space.size,
        "picked": len(configs),
        "flops_range": max(flops) / min(flops),
        "mean_gap_points": mean(gaps),
        "worst_gap_points": min(gaps),
        "cost_over_largest": mean(cost[s, None] / alone[s][0] for s in SEEDS),
        "cost_over_separate": mean(cost[s, None] / sum(alone[s]) for s in SEEDS),
    }
    baseline: dict[str, float] = {}
    for number, share in enumerate(SHARES):
        at = f"_at_{share:g}_flops"
        figures[f"accuracy{at}"] = mean(ours[s][number] for s in SEEDS)
        baseline[f"accuracy{at}"] = mean(theirs[s][number] for s in SEEDS)
        figures[f"gap_points{at}"] = by_pick[number]
    figures |= latencies(final[SEEDS[0]][None], configs, data)
    settings = {
        "network": "pliant.nets.resnet((1, 28, 28), 10, blocks=(1, 1, 1), width=16)",
        "recipe": repr(final[0][None].made_recipe()), "epochs_family": FAMILY_EPOCHS, "epochs_alone": EPOCHS,
        "learning_rates_tried": list(RATES), "learning_rate_family": rates[None],
        "learning_rates_alone": [rates[n] for n in range(len(configs))], "batch_size": 128, "optimizer": "adamw",
        "picks": "most even config within 5 % of each share of FLOPs, chosen before any training",
        "configs": [dict(config) for config in configs],
    }  # fmt: skip
    data_told = "Fashion-MNIST, 20,000 training, 3,000 validation, 10,000 test images"
    return Outcome(figures, data_told, SEEDS, baseline, cpu_seconds=sum(map(families.cost, every)), settings=settings)


def latencies(job: Job, configs: Sequence[Config], data: Any) -> dict[str, float]:
    """Median milliseconds of every pick through the runtime, and whether larger is never faster beyond the noise."""
    import pliant
    from pliant import runtime

    net = families.trained(job)
    with TemporaryDirectory() as folder:
        pliant.compile(net, Path(folder) / "family", configs=list(configs), data=data)
        loaded = runtime.load(Path(folder) / "family")
        image = data.val.inputs[:1].numpy()
        calls = {str(n): (lambda n=n: loaded.run(image, entry=n, preprocessed=True)) for n in range(len(configs))}
        compared = pliant.hardware("cpu", threads=1).compare(calls, rounds=200, seconds=20)
    found = {f"latency_ms_at_{share:g}_flops": compared[str(n)].median_ms for n, share in enumerate(SHARES)}
    wrong = any(compared.faster(str(large), str(small)) for large, small in pairwise(range(len(configs))))
    return {**found, "latency_noise": compared.noise, "latency_monotone": int(not wrong)}
