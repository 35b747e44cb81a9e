"""From a run folder to what the report shows; the one place where the test split is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pliant.core import Config, PliantError, read_json, seeded, write_atomic, write_json
from pliant.data import Dataset, Split
from pliant.elastic import Elastic
from pliant.elastic.conflict import gradient_conflict
from pliant.elastic.separate import Separate, separated
from pliant.learn import evaluate, metrics, predict
from pliant.learn.losses import loss_function
from pliant.report.conditions import conditions
from pliant.report.contents import Candidate, Compared, Contents, letters, quantity, summarise
from pliant.report.page import page
from pliant.report.search_history import search_history
from pliant.search import Front, Point, objectives
from pliant.search.pareto import hypervolume

MOST_TESTED = 12
"""Points of the front whose test accuracy is measured; more are shown with their validation figures only."""


MOST_COMPARED = 6
"""Sub-networks whose gradients are compared."""
_COMPARED_ROWS = 128


@dataclass(frozen=True)
class Tested:
    """One sub-network on the test split.

    Args:
        metric: the figure of the task.
        right: per sample whether it was classified rightly; empty for other tasks.
    """

    metric: float
    right: tuple[bool, ...] = ()


def write_report(run: str | Path, net: Elastic, *, data: Any, model: str | None = None) -> Path:
    """Writes RUN/report.html: one self-contained file.

    Args:
        run: a run folder with a `front.json`.
        net: the trained network of that run.
        data: what it was trained on; whatever `Dataset.of` accepts.
        model: what to call the network; by default the name of its class.

    Returns:
        The path of the page.

    Raises:
        PliantError: there is no front, it is one of another network, or the folder cannot be written.
    """
    run = Path(run)
    contents = collect(run, net, dataset=Dataset.of(data), model=model)
    write_atomic(run / "report.html", page(contents))
    return run / "report.html"


def collect(run: Path, net: Elastic, *, dataset: Dataset, model: str | None = None) -> Contents:
    """Reads everything a report shows; arguments as in `write_report`.

    Test figures are kept in RUN/test.json, so that the test split is read once for one front of one network and what
    `pliant.separate` has trained beside it.
    """
    if not (run / "front.json").is_file():
        raise PliantError("no search yet", where=str(run), fix=f"give: pliant search {run}")
    front = Front.load(run / "front.json")
    chosen = list(front.pick(MOST_TESTED))
    largest = net.space.largest()
    alone = separated(run, net)
    asked = [*(point.config for point in chosen), largest, *(one.config for one in alone)]
    tested, tested_alone = _tested(run, net, dataset, asked, alone)
    whole = _candidate(net, "whole network", _point(front, largest), tested)
    counts = _class_counts(dataset, whole is not None and bool(tested[largest].right), run)
    points = [_candidate(net, letters(index), point, tested) for index, point in enumerate(front)]
    if counts:
        truth = np.asarray(read_json(run / "test.json")["targets"])
        whole = _with_classes(whole, whole, tested, truth, len(counts))
        points = [_with_classes(point, whole, tested, truth, len(counts)) for point in points]
    names = {net.space.smallest(): "smallest", **{c.config: c.name for c in points}, largest: "whole network"}
    return Contents(
        model=model or net.name,
        data=dataset.name,
        task=dataset.task,
        metric=dataset.metric.name,
        objectives=tuple(quantity(axis.key, maximise=axis.maximise) for axis in front.objectives),
        front=tuple(points),
        largest=whole,
        trials=tuple(dict(point.values) for point in front.trials),
        quality=quality(front),
        metrics=_metrics(run),
        look=net.report().to_dict(),
        class_names=tuple(dataset.classes) if counts else (),
        class_counts=counts,
        space_size=net.space.size,
        separate=tuple(_compared(net, names, one, tested[one.config], tested_alone[one.config]) for one in alone),
        conflict=conflict(
            net,
            dataset,
            [
                ("whole network", largest),
                *((c.name, c.config) for c in points[::-1]),
                ("smallest", net.space.smallest()),
            ],
        ),
        conditions=conditions(run, front, dataset),
        history=search_history(run, front, space=net.space),
    )


def conflict(net: Elastic, dataset: Dataset, named: Sequence[tuple[str, Config]]) -> tuple[
    tuple[str, tuple[float, ...]], ...]:  # fmt: skip
    """Cosines between the gradients of at most `MOST_COMPARED` sub-networks, spread over those named, on some training
    samples."""
    spread = dict.fromkeys(round(i * (len(named) - 1) / (MOST_COMPARED - 1)) for i in range(MOST_COMPARED))
    chosen = list({config: name for name, config in reversed([named[i] for i in spread])}.items())[::-1]
    batches = islice(dataset.train.batches(_COMPARED_ROWS, generator=seeded(0, "conflict")), 2)
    found = gradient_conflict(net, batches, loss_function(dataset.loss), [config for config, _ in chosen])
    return tuple((name, tuple(row)) for (_, name), row in zip(chosen, found.tolist(), strict=True))


def _compared(net: Elastic, names: Mapping[Config, str], one: Separate, ours: Tested, theirs: Tested) -> Compared:
    """A sub-network beside the one trained alone: paired where single answers can be right or wrong."""
    mine, other = (np.asarray(found.right, dtype=float) for found in (ours, theirs))
    change = paired_change(mine, other) if ours.right else (ours.metric - theirs.metric, None)
    told = names.get(one.config, "–"), summarise(one.config, net.space)
    return Compared(*told, ours.metric, theirs.metric, change, one.epochs, one.cpu_seconds)


def quality(front: Front, most: int = 200) -> tuple[float, ...]:
    """Hypervolume after each trial, as a share of the box between worst and best values; empty below two trials."""
    costs = np.asarray([[axis.cost(p.values[axis.key]) for axis in front.objectives] for p in front.trials])
    if len(costs) < 2:
        return ()
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    corner = np.ones(scaled.shape[1]) * 1.0001  # the worst values count a little, or a front of extremes would be 0
    return tuple(hypervolume(scaled[: count + 1], corner) for count in range(min(len(scaled), most)))


def _point(front: Front, config: Config) -> Point:
    """The measured point of a configuration, or one without values."""
    return next((point for point in front.trials if point.config == config), Point(config, {}))


def _candidate(net: Elastic, name: str, point: Point, tested: dict[Config, Tested]) -> Candidate:
    cost = net.cost(point.config)
    values = {"flops": float(cost.flops), "parameters": float(cost.parameters), **point.values}
    found = tested.get(point.config)
    test = found.metric if found else None
    return Candidate(name, point.config, values, summarise(point.config, net.space), test)


def _with_classes(
    candidate: Candidate, whole: Candidate, tested: dict[Config, Tested], truth: "np.ndarray[Any, Any]", classes: int
) -> Candidate:
    """The candidate with its accuracy per class and the change against the whole network."""
    found = tested.get(candidate.config)
    if found is None:
        return candidate
    mine = np.asarray(found.right, dtype=float)
    theirs = np.asarray(tested[whole.config].right, dtype=float)
    rights, changes = [], []
    for index in range(classes):
        members = truth == index
        rights.append(float(mine[members].mean()) if members.any() else 0.0)
        changes.append(paired_change(mine[members], theirs[members]))
    if candidate.config == whole.config:
        return replace(candidate, classes=tuple(rights))
    return replace(candidate, classes=tuple(rights), change=tuple(changes), total=paired_change(mine, theirs))


def paired_change(mine: "np.ndarray[Any, Any]", theirs: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """Mean difference of paired right/wrong marks, and its standard error (that of McNemar's comparison)."""
    if not len(mine):
        return 0.0, 0.0
    difference = mine - theirs
    mean = float(difference.mean())
    spread = float(np.sqrt(max(float((difference**2).mean()) - mean**2, 0.0) / len(mine)))
    return mean, spread


def _key(run: Path) -> str:
    """Content of the front, of the network and of those trained alone: test figures belong to exactly these."""
    digest = hashlib.sha256((run / "front.json").read_bytes())
    if (run / "separate.json").is_file():
        digest.update((run / "separate.json").read_bytes())
    for path in sorted((run / "model").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _tested(
    run: Path, net: Elastic, dataset: Dataset, configs: Sequence[Config], alone: Sequence[Separate]
) -> tuple[dict[Config, Tested], dict[Config, Tested]]:
    """Test figures of sub-networks and of those trained alone, from RUN/test.json where they belong to these."""
    key, path = _key(run), run / "test.json"
    if path.is_file():
        known = read_json(path)
        if known.get("key") == key:
            return _parsed(known["tested"]), _parsed(known.get("alone", []))
    test = dataset.test  # the only read
    tested = {config: measure_on(net, config, dataset, test) for config in dict.fromkeys(configs)}
    tested_alone = {one.config: judged(one.module, dataset, test) for one in alone}
    targets = test.targets.tolist() if dataset.task == "classify" else []
    rows = {"tested": _rows(tested), "alone": _rows(tested_alone)}
    write_json(path, {"key": key, "metric": dataset.metric.name, "targets": targets, **rows})
    return tested, tested_alone


def _rows(tested: Mapping[Config, Tested]) -> list[dict[str, Any]]:
    return [
        {"config": dict(config), "metric": found.metric, "right": "".join(str(int(mark)) for mark in found.right)}
        for config, found in tested.items()
    ]


def _parsed(rows: Sequence[Mapping[str, Any]]) -> dict[Config, Tested]:
    return {
        Config(item["config"]): Tested(item["metric"], tuple(bool(int(mark)) for mark in item["right"]))
        for item in rows
    }


def measure_on(net: Elastic, config: Config, dataset: Dataset, split: Split) -> Tested:
    """What `judged` says of a sub-network, calibrated as in the search."""
    return judged(objectives.Candidate(objectives.Context(net, train=dataset.train), config).module, dataset, split)


def judged(module: nn.Module, dataset: Dataset, split: Split) -> Tested:
    """The metric of a network, and for classification which samples it gets right."""
    if dataset.task != "classify":
        return Tested(evaluate(module, split, metric=dataset.metric.name))
    right, _ = metrics.correct(predict(module, split), split.targets)
    return Tested(float(right.float().mean()), tuple(bool(mark) for mark in right))


def _class_counts(dataset: Dataset, rated: bool, run: Path) -> tuple[int, ...]:
    if not rated:
        return ()
    targets = torch.tensor(read_json(run / "test.json")["targets"])
    return tuple(int(count) for count in torch.bincount(targets, minlength=len(dataset.classes)))


def _metrics(run: Path) -> tuple[dict[str, Any], ...]:
    """Lines of metrics.jsonl; a last line that was cut off by a crash is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return ()
    lines = path.read_text().splitlines()
    rows = []
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if index < len(lines) - 1:
                raise PliantError(f"line {index + 1} is no JSON ({error})", where=str(path)) from error
    return tuple(row for row in rows if isinstance(row, dict))
