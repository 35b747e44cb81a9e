"""Families against separately trained networks: trainings in the cache, picks, and what both reach."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path
from statistics import mean
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import pliant
from bench._common import cached, in_workers, one_thread
from bench._mobile import Mobile
from bench._recipes import RECIPES
from pliant.core import Config, seeded
from pliant.data import Dataset, Split
from pliant.elastic import Elastic
from pliant.elastic.recipes import Nested, Plain, Sandwich
from pliant.learn import Recipe, Settings, evaluate, train

VERSION = 1  # of everything that decides a training's outcome; raise it when such code changes
QUALITY_VERSION = 2  # of how trained networks are measured
RECIPE_VERSION = 3  # of what decides a family's outcome alone, in every recipe
RECIPE_VERSIONS = {"nested": 4}  # of recipes that have changed since
CALIBRATION_IMAGES = 4096
CONTEXT = 64  # tokens of a sequence


@dataclass(frozen=True)
class Task:
    """The data and the whole network of a row.

    Args:
        data: `fashion` (20,000 training images), `fashion-10k`, `digits`, or `shakespeare-quarter` (the first quarter
            of the training text).
        blocks: resnet, mobile: blocks of each stage; dwsep: strides of its separable convolutions; gpt: its depth.
        width: resnet, mobile: channels of the first stage; dwsep: of the stem; gpt: features per token.
        fold: which fifth is the test split (digits).
        net: `resnet`, `dwsep`, `mobile` or `gpt`.
    """

    data: str
    blocks: tuple[int, ...]
    width: int
    fold: int = 0
    net: str = "resnet"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return {"digits": (1, 8, 8), "shakespeare-quarter": (CONTEXT,)}.get(self.data, (1, 28, 28))

    @property
    def unit(self) -> str:
        """Of differences in quality: points of accuracy, or nats a token."""
        return "nats" if self.data == "shakespeare-quarter" else "points"

    def what(self) -> dict[str, Any]:
        """Its content, by which trainings are cached."""
        told = asdict(self)
        if self.net == "resnet":
            del told["net"]
        return told


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        task: on what.
        epochs, lr, batch_size, seed: how.
        config: None trains the family, a config (as sorted items) that sub-network alone from a fresh start.
        recipe: of the family.
        precision: `float32` or `bfloat16`.
    """

    task: Task
    epochs: int
    lr: float
    batch_size: int
    seed: int
    config: tuple[tuple[str, int | bool], ...] | None = None
    recipe: str = "nested"
    precision: str = "float32"

    def what(self) -> dict[str, Any]:
        """The content by which it is cached."""
        told = asdict(self) | {"task": self.task.what()}
        told["config"] = None if self.config is None else dict(self.config)
        if self.config is not None:  # a recipe is a matter of families
            del told["recipe"]
        if self.precision == "float32":
            del told["precision"]
        versions = [VERSION, RECIPE_VERSIONS.get(self.recipe, RECIPE_VERSION)] if self.config is None else VERSION
        return {"training": told, "version": versions, "torch": torch.__version__}

    def made_recipe(self) -> Recipe:
        """The recipe of a family."""
        if self.recipe in RECIPES:
            return RECIPES[self.recipe]()
        return Sandwich() if self.recipe == "sandwich" else Nested()


# -- data and networks ------------------------------------------------------------------------------------------------


def dataset(task: Task) -> Dataset:
    """The task's data."""
    if task.data == "shakespeare-quarter":
        return _shakespeare()
    return _digits(task.fold) if task.data == "digits" else _fashion(10000 if task.data == "fashion-10k" else 20000)


def _shakespeare() -> Dataset:
    """Sequences of characters; what the text comes in is cut by `pliant.data`. All of its validation and test text."""
    data = pliant.data.load("tiny-shakespeare", context=CONTEXT)
    train = data.train.take(len(data.train) // 4)
    return Dataset(data.name, train, data.val, data.test, data.task, data.classes, data.preprocessing)


def _fashion(images: int) -> Dataset:
    """So many training images, 6,000 others for validation, all 10,000 test images."""
    data = pliant.data.load("fashion-mnist", limit=20000)
    train = data.train.take(images)
    return Dataset(data.name, train, data.val, data.test, data.task, data.classes, data.preprocessing)


def _digits(fold: int) -> Dataset:
    """Four fifths of the 8 x 8 digits for training (an eighth of them for validation), one fifth for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, train_test_split

    x, y = load_digits(return_X_y=True)
    images = x.reshape(-1, 1, 8, 8).astype("float32") / 16 - 0.3
    rest, test = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, y))[fold]
    kept, val = train_test_split(rest, test_size=0.125, random_state=fold, stratify=y[rest])
    parts = {"train": kept, "val": val, "test": test}
    arrays = {f"x_{part}": images[rows] for part, rows in parts.items()}
    return Dataset.of(arrays | {f"y_{part}": y[rows].astype("int64") for part, rows in parts.items()})


def whole_network(task: Task, seed: int) -> nn.Module:
    """The largest network, fresh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if task.net == "gpt":
            (depth,) = task.blocks
            return pliant.nets.gpt(task.shape, 65, dim=task.width, depth=depth, heads=task.width // 16)
        if task.net == "dwsep":
            channels = [task.width * halved for halved in accumulate(task.blocks, operator.mul)]
            return pliant.nets.dwsep(task.shape, 10, stem=task.width, channels=channels, strides=task.blocks)
        if task.net == "mobile":
            return Mobile(task.shape[0], 10, width=task.width, blocks=task.blocks)
        return pliant.nets.resnet(task.shape, 10, blocks=task.blocks, width=task.width)


def family(task: Task, seed: int = 0) -> Elastic:
    """The largest network made elastic, fresh."""
    model = whole_network(task, seed)
    if task.net == "gpt":  # one knob for all layers, so that there are sizes to look through
        tie = ("heads:*", "width:blocks*")
        return pliant.elastic(model, torch.zeros((2, *task.shape), dtype=torch.int64), tie=tie)
    choices = {"kernel:*": (3, 5)} if task.net == "mobile" else None
    net = pliant.elastic(model, torch.zeros((2, *task.shape)), choices=choices)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def alone(task: Task, config: Mapping[str, int | bool], seed: int) -> nn.Module:
    """A network of a sub-network's sizes, initialised as `pliant.nets` initialises one of these sizes."""
    net = family(task, seed).extract(config)
    parameters = dict(net.named_parameters())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, tensor in parameters.items():
            _initialise(task, name, tensor, parameters)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "num_batches_tracked")):
            buffer.zero_()
        elif name.endswith("running_var"):
            buffer.fill_(1)
    if task.net == "gpt":
        return net
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _initialise(task: Task, name: str, tensor: Tensor, parameters: Mapping[str, Tensor]) -> None:
    owner, _, leaf = name.rpartition(".")
    if task.net == "gpt" and tensor.dim() == 2:
        nn.init.normal_(tensor, std=0.02)
    elif task.net == "resnet" and tensor.dim() == 4:
        nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu")
    elif tensor.dim() > 1:
        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
    elif leaf == "weight":
        nn.init.ones_(tensor)
    elif task.net == "gpt" or parameters[f"{owner}.weight"].dim() == 1:
        nn.init.zeros_(tensor)
    else:
        bound = 1 / math.sqrt(parameters[f"{owner}.weight"].shape[1])
        nn.init.uniform_(tensor, -bound, bound)


# -- picks ------------------------------------------------------------------------------------------------------------


def picks(net: Elastic, shares: Sequence[float], *, tolerance: float = 0.05) -> list[Config]:
    """Configs spread over FLOPs, chosen from sizes alone: no data, no training.

    For each share of the whole network's FLOPs, the most even config (least standard deviation of kept shares over
    widths, all depth kept) within `tolerance` of it; the nearest where none is.
    """
    whole = net.space.largest()
    full = net.cost(whole).flops
    widths = [knob for knob in net.space if not isinstance(whole[knob.name], bool)]
    table = []
    for config in net.space.configs():
        if all(config[k.name] is not False for k in net.space):
            kept = torch.tensor([config[k.name] / k.choices[-1] for k in widths])
            table.append((net.cost(config).flops / full, float(kept.std()), config))
    chosen = []
    for share in shares:
        near = [row for row in table if abs(row[0] / share - 1) <= tolerance]
        row = min(near, key=lambda row: row[1]) if near else min(table, key=lambda row: abs(row[0] / share - 1))
        chosen.append(row[2])
    return chosen


# -- training ---------------------------------------------------------------------------------------------------------


def run_job(job: Job) -> dict[str, Any]:
    """Train, or find the training in the cache. Returns its facts: `cpu_seconds`, `seconds`, `val`."""
    return cached(job.what(), lambda folder: _train(job, folder))[1]


def cost(job: Job) -> float:
    """CPU seconds of a finished job's training steps."""
    return float(run_job(job)["cpu_seconds"])


def _train(job: Job, folder: Path) -> dict[str, Any]:
    one_thread()
    data = dataset(job.task)
    net: nn.Module
    recipe: Recipe
    if job.config is None:
        net = family(job.task, job.seed)
        recipe = job.made_recipe()
    else:
        net, recipe = alone(job.task, dict(job.config), job.seed), Plain()
    settings = Settings(lr=job.lr, batch_size=job.batch_size, precision=job.precision, progress=False)
    history = train(net, unvalidated(data), recipe=recipe, epochs=job.epochs, settings=settings, seed=job.seed)
    subject = calibrated(net, net.space.largest(), data, job.seed) if isinstance(net, Elastic) else net
    val = quality(job.task, subject, data.val)
    tensors = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    (folder / "tensors.safetensors").write_bytes(safetensors.torch.save(tensors))
    print(f"  {_told(job)}: {history}, validation {val:.4f}", flush=True)
    return {"cpu_seconds": history.cpu_seconds, "seconds": history.seconds, "val": val, "loss": history.loss}


def unvalidated(data: Dataset) -> Dataset:
    """The data with an empty validation split: one measurement after the last epoch is enough here."""
    return Dataset(data.name, data.train, data.val.select(slice(0, 0)), data.train.take(1), data.task, data.classes)


def _told(job: Job) -> str:
    where = f"fold {job.task.fold}, " if job.task.data == "digits" else ""
    what = "family" if job.config is None else f"alone {[v for _, v in job.config]}"
    return f"{job.task.data}, {where}{what}, lr {job.lr:g}, seed {job.seed}"


def trained(job: Job) -> nn.Module:
    """The network of a finished job, in eval mode."""
    folder, _ = cached(job.what(), lambda folder: _train(job, folder))
    net = family(job.task, job.seed) if job.config is None else alone(job.task, dict(job.config), job.seed)
    net.load_state_dict(safetensors.torch.load((folder / "tensors.safetensors").read_bytes()))
    return net.eval()


def calibrated(net: Elastic, config: Mapping[str, int | bool], data: Dataset, seed: int) -> nn.Module:
    """A sub-network with its own BatchNorm statistics, from training images."""
    batches = data.train.batches(128, generator=seeded(seed, "bench", "calibrate"), drop_last=len(data.train) > 128)
    inputs = (inputs for inputs, _ in islice(batches, CALIBRATION_IMAGES // 128))
    return net.extract(config, calibrate=inputs).eval()


def quality(task: Task, net: nn.Module, split: Split) -> float:
    """Accuracy (0..1), or minus the nats a token: more is better."""
    return -evaluate(net, split, metric="next_token_loss") if task.unit == "nats" else evaluate(net, split)


def gap(task: Task, ours: float, theirs: float) -> float:
    """How much better ours is, in the task's unit."""
    return (ours - theirs) * (1 if task.unit == "nats" else 100)


@dataclass(frozen=True)
class Ask:
    """What is measured of a finished training.

    Args:
        job: the training.
        split: `val` or `test`.
        configs: sub-networks of a family, each with its own BatchNorm statistics; None: the network that was trained.
    """

    job: Job
    split: str
    configs: tuple[Config, ...] | None = None


def answer(ask: Ask) -> list[float]:
    """Quality of every network asked for; measured once and kept in the cache."""
    configs = None if ask.configs is None else [dict(config) for config in ask.configs]
    what = {"quality": ask.job.what(), "split": ask.split, "configs": configs, "version": QUALITY_VERSION}
    found: list[float] = cached(what, lambda folder: {"values": _measure(ask)})[1]["values"]
    return found


def _measure(ask: Ask) -> list[float]:
    one_thread()
    data, net = dataset(ask.job.task), trained(ask.job)
    split: Split = getattr(data, ask.split)
    if ask.configs is None:
        return [quality(ask.job.task, net, split)]
    assert isinstance(net, Elastic)
    return [quality(ask.job.task, calibrated(net, config, data, ask.job.seed), split) for config in ask.configs]


def qualities(job: Job, configs: Sequence[Config], split: str) -> list[float]:
    """Quality of sub-networks of a trained family, on `val` or `test`."""
    return answer(Ask(job, split, tuple(configs)))


def best_family(jobs: Sequence[Job], configs: Sequence[Config]) -> Job:
    """The job whose sub-networks are best on the validation split, on average."""
    if len(jobs) > 1:
        in_workers(answer, [Ask(job, "val", tuple(configs)) for job in jobs])
    return max(jobs, key=lambda job: mean(qualities(job, configs, "val")))


def best_rate(tried: Mapping[float, Sequence[Ask]]) -> float:
    """The learning rate whose trainings are best in what is asked of them, on average over seeds and sub-networks.

    Args:
        tried: for each learning rate a question for every seed, about the validation split.
    """
    asks = [ask for each in tried.values() for ask in each]
    in_workers(run_job, [ask.job for ask in asks])
    found = dict(zip(asks, in_workers(answer, asks), strict=True))
    return max(tried, key=lambda lr: mean(mean(found[ask]) for ask in tried[lr]))
