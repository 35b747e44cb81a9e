"""onepass: all widths in one forward: exactness, what a training step costs, and quality beside the default recipe.

Two tasks of `train-once`: Fashion-MNIST with a residual network, a quarter of tiny Shakespeare with a small GPT (whose
head has weights of its own here: a tied one cannot be one pass). The default recipe's families are those of
`train-once`; a one-pass network has four widths, and is set against the sub-networks of the default family that keep
the same quarters of every width and all depth. Epochs are such that both take about the same CPU time;
`cost_over_default` says how nearly, from steps of both in turn. Both have the same two learning rates to choose from,
by the mean validation quality of these widths over all seeds.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

import pliant
from bench import _families as families
from bench._common import Outcome, cached, in_workers, interleaved, one_thread
from bench._costs import step_ratio as family_step_ratio
from bench._costs import stepping
from bench.train_once import CONTESTS, DEFAULT, SEEDS, Contest, by_rate
from pliant.core import Config, call
from pliant.data import Dataset
from pliant.elastic import OnePass
from pliant.elastic.recipes import AllWidths
from pliant.learn import Plain, Recipe, Settings, train
from pliant.testing.subject import gap

REQUIRED = ("max_error", "step_cost_ratio", "gap_to_default_points")
VERSION = 1  # of everything that decides a one-pass training's outcome; raise it when such code changes
WIDTHS = 4
EPOCHS_SHARE = {"resnet": 0.62, "gpt": 0.52}
"""Epochs of a one-pass network over those of the default recipe's family: about the same CPU time."""
LEAK = {"resnet": 0.3, "gpt": 1.0}
HEADS: dict[str, Literal["own", "shared"]] = {"resnet": "own", "gpt": "shared"}
"""With 65 classes and 64 features, heads of its own for every width would be a good part of the network."""
ROUNDS = 40


@dataclass(frozen=True)
class OneJob:
    """The training of a one-pass network on a task of `train-once`."""

    name: str
    lr: float
    seed: int

    @property
    def contest(self) -> Contest:
        """The task and its settings."""
        return CONTESTS[self.name]

    @property
    def epochs(self) -> int:
        """How many."""
        return max(1, round(EPOCHS_SHARE[self.name] * self.contest.family_epochs[DEFAULT]))

    def what(self) -> dict[str, Any]:
        """The content by which it is cached."""
        told = asdict(self) | {"task": self.contest.task.what(), "epochs": self.epochs, "leak": LEAK[self.name]}
        told |= {"widths": WIDTHS, "batch_size": self.contest.batch_size, "heads": HEADS[self.name]}
        told |= {"precision": self.contest.precision}
        return {"one_pass": told, "version": [VERSION, families.VERSION], "torch": torch.__version__}


def dense(job: OneJob) -> nn.Module:
    """The whole network, fresh; a GPT with a head of its own."""
    task = job.contest.task
    if task.net != "gpt":
        return families.whole_network(task, job.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return pliant.nets.gpt(task.shape, 65, dim=task.width, depth=task.blocks[0], heads=task.width // 16, tied=False)


def laid_out(net: nn.Module, job: OneJob) -> nn.Module:
    """In the memory format that `train-once` trains in."""
    channels_last = job.contest.task.net != "gpt"
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]


def fresh(job: OneJob) -> OnePass:
    """The one-pass network, fresh."""
    task = job.contest.task
    example = torch.zeros((2, *task.shape), dtype=torch.int64 if task.net == "gpt" else torch.float32)
    net = pliant.one_pass(dense(job), example, shells=WIDTHS, leak=LEAK[job.name], heads=HEADS[job.name])
    return laid_out(net, job)  # type: ignore[return-value]


def run_job(job: OneJob) -> dict[str, Any]:
    """Train, or find the training in the cache."""
    return cached(job.what(), lambda folder: _train(job, folder))[1]


def _train(job: OneJob, folder: Path) -> dict[str, Any]:
    one_thread()
    data, net = families.dataset(job.contest.task), fresh(job)
    contest = job.contest
    settings = Settings(lr=job.lr, batch_size=contest.batch_size, precision=contest.precision, progress=False)
    history = train(net, families.unvalidated(data), epochs=job.epochs, settings=settings, seed=job.seed)
    tensors = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    (folder / "tensors.safetensors").write_bytes(safetensors.torch.save(tensors))
    val = mean(families.quality(job.contest.task, net.at(k), data.val) for k in range(1, WIDTHS + 1))
    print(f"  one pass, {job}: {history}, validation {val:.4f}", flush=True)
    return {"cpu_seconds": history.cpu_seconds, "val": val}


def trained(job: OneJob) -> OnePass:
    """The network of a finished job, in eval mode."""
    folder, _ = cached(job.what(), lambda folder: _train(job, folder))
    net = fresh(job)
    net.load_state_dict(safetensors.torch.load((folder / "tensors.safetensors").read_bytes()))
    return net.eval()


def quarters(contest: Contest) -> list[Config]:
    """The sub-networks of the default family that keep so many quarters of every width, the narrowest first.

    Raises:
        ValueError: a width has other choices than quarters.
    """
    space = families.family(contest.task).space
    whole = space.largest()
    widths = [knob for knob in space if not isinstance(whole[knob.name], bool)]
    if other := [knob.name for knob in widths if len(knob.choices) != WIDTHS]:
        raise ValueError(f"{', '.join(other)}: not {WIDTHS} choices, so that there are no quarters to compare")
    return [whole.replace({knob.name: knob.choices[k] for knob in widths}) for k in range(WIDTHS)]


def error(net: OnePass, inputs: Any) -> float:
    """Largest difference between a column of the one pass and its width alone, run in every way there is.

    Relative to the largest output of the width, as the law `prefix_equals_column` has it.
    """
    with torch.no_grad():
        columns, steps = call(net, inputs), list(net.anytime(inputs))
        worst = 0.0
        for k in range(WIDTHS):
            alone = (net(inputs, width=k + 1), steps[k], net.extract(k + 1)(inputs))
            worst = max(worst, *(gap(each, columns[k]) for each in alone))
    return worst


def step_ratio(job: OneJob, data: Dataset) -> float:
    """CPU time of a training step over that of the dense network: the median over rounds."""
    contest = job.contest
    batch = next(iter(data.train.batches(contest.batch_size)))
    sides: dict[str, tuple[nn.Module, Recipe]] = {
        "dense": (laid_out(dense(job), job), Plain()), "ours": (fresh(job), AllWidths())
    }  # fmt: skip
    functions = {
        name: stepping(net, recipe, batch, loss=data.loss, precision=contest.precision, steps=ROUNDS)
        for name, (net, recipe) in sides.items()
    }
    times = interleaved(functions, ROUNDS)
    return median(a / b for a, b in zip(times["ours"], times["dense"], strict=True))


def compared(name: str) -> tuple[dict[str, float], dict[str, Any], float]:
    """One task: its figures, what to tell of it, and the CPU seconds of its trainings."""
    contest = CONTESTS[name]
    task, data = contest.task, families.dataset(contest.task)
    ratio = step_ratio(OneJob(name, contest.rates[0], SEEDS[0]), data)
    picks = quarters(contest)
    tried = {lr: [OneJob(name, lr, seed) for seed in SEEDS] for lr in contest.rates}
    every = [job for each in tried.values() for job in each]
    facts = dict(zip(every, in_workers(run_job, every), strict=True))
    ours = tried[max(tried, key=lambda lr: mean(float(facts[job]["val"]) for job in tried[lr]))]
    rate = families.best_rate(by_rate(contest, DEFAULT, picks))
    theirs = [contest.family(DEFAULT, seed, rate) for seed in SEEDS]
    cost = sum(float(fact["cpu_seconds"]) for fact in facts.values())
    cost += sum(families.cost(contest.family(DEFAULT, seed, lr)) for seed in SEEDS for lr in contest.rates)
    best, rival = ours[0], theirs[0]
    largest = contest.alone(families.family(task).space.largest(), SEEDS[0], contest.rates[0])
    mine = [[families.quality(task, net.at(k), data.test) for k in range(1, WIDTHS + 1)] for net in map(trained, ours)]
    other = [families.qualities(job, picks, "test") for job in theirs]
    gaps = [
        families.gap(task, mean(a), mean(b))
        for a, b in zip(zip(*mine, strict=True), zip(*other, strict=True), strict=True)
    ]
    figures = {
        "max_error": error(trained(ours[0]), data.test.inputs[:64]), "step_cost_ratio": ratio,
        f"gap_to_default_{task.unit}": mean(gaps), f"worst_gap_to_default_{task.unit}": min(gaps),
        "cost_over_default": ratio * best.epochs / (family_step_ratio(rival, largest, data) * rival.epochs),
    }  # fmt: skip
    told = {
        "epochs": best.epochs, "precision": contest.precision, "heads": HEADS[name], "leak": LEAK[name],
        "learning_rate": best.lr, "learning_rate_default": rival.lr, "default_epochs": rival.epochs,
        "gap_by_width": gaps,
        "quality_by_width": [mean(column) for column in zip(*mine, strict=True)],
        "default_quality_by_width": [mean(column) for column in zip(*other, strict=True)],
    }  # fmt: skip
    return figures, told, cost


def run() -> Outcome:
    """The whole row."""
    one_thread()
    found = {name: compared(name) for name in EPOCHS_SHARE}
    figures: dict[str, float] = {
        "max_error": max(each["max_error"] for each, _, _ in found.values()),
        "step_cost_ratio": max(each["step_cost_ratio"] for each, _, _ in found.values()),
        "gap_to_default_points": found["resnet"][0]["gap_to_default_points"],
        "gap_to_default_nats": found["gpt"][0]["gap_to_default_nats"],
    }
    for name, (each, _, _) in found.items():
        figures |= {f"{name}_{figure}": value for figure, value in each.items()}
    settings = {name: told for name, (_, told, _) in found.items()} | {"widths": WIDTHS}
    data = "Fashion-MNIST, 10,000 training images; a quarter of tiny Shakespeare, sequences of 64 characters"
    return Outcome(figures, data, SEEDS, cpu_seconds=sum(cpu for _, _, cpu in found.values()), settings=settings)
