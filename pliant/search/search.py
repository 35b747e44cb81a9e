"""The search: which sub-networks are worth having on this hardware."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from pliant.core import Config, PliantError, seeded
from pliant.data import Dataset, Split
from pliant.export import Hardware
from pliant.export import hardware as make_hardware
from pliant.search.draw import number
from pliant.search.front import Axis, Front, Point
from pliant.search.measurements import Measurements, digest
from pliant.search.objectives import (
    Candidate,
    Context,
    Gauge,
    Latency,
    Objective,
    Reading,
    Searchable,
    checked,
    gauges,
)
from pliant.search.proposers import Proposer, Ridge
from pliant.search.trials import Trials, check_run, only_one, open_trials

_ROUNDS = 4


@dataclass(frozen=True)
class SearchSettings:
    """How `search` measures and proposes.

    Args:
        batch_size: samples per forward pass, in calibration and evaluation.
        calibration_batches: training batches that re-estimate BatchNorm of each sub-network.
        val_limit: how many validation samples to judge by (a random part, the same for all); None for all.
        output: which field or key of the network's output is judged; `logits` are found without.
        proposer: what chooses the next sub-network: `Ridge()`, `Random()`, `Tpe()`, or your own `Proposer`.
        progress: whether a line per trial goes to stderr; None writes them when stderr is a terminal.

    Raises:
        ValueError: a number below 1.
    """

    batch_size: int = 256
    calibration_batches: int = 16
    val_limit: int | None = None
    output: str | None = None
    proposer: Proposer = field(default_factory=Ridge)
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "calibration_batches", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def search(
    net: Searchable,
    data: Any = None,
    *,
    objectives: Sequence[str | Objective | Callable[[nn.Module, Config], float]] = ("accuracy", "latency"),
    hardware: Hardware | None = None,
    n_trials: int = 60,
    run: str | Path | None = None,
    settings: SearchSettings = SearchSettings(),
    seed: int = 0,
) -> Front:
    """Find the sub-networks that no other one beats in every objective.

    Every candidate is extracted, its BatchNorm re-estimated on training batches, and judged on the validation split;
    the test split is never read. What is measured next is chosen by predictors trained on what was measured so far.
    With a run folder every figure is kept as soon as it is known: a search that was stopped or killed goes on where it
    was, asks the same questions as an undisturbed one, and measures nothing twice. Latencies on the front are measured
    again at the end, side by side; points it could not tell apart say so in `Point.ties`.

    Args:
        net: an elastic network; not changed.
        data: a `Dataset` or whatever `Dataset.of` takes; None where no objective needs any.
        objectives: names (`accuracy`, `latency`, `flops`, `parameters`, `bytes`, or a metric), `Objective`s, or
            functions of module and config.
        hardware: where latency is measured; by default one thread of this processor.
        n_trials: how many sub-networks to measure in all, those of earlier calls in the same folder included; the
            whole space where it is smaller.
        run: folder for `space.json`, `trials.journal`, `measurements.sqlite` and `front.json`; None keeps nothing.
        settings: how to measure.
        seed: of every choice; a search with another seed in the same folder starts its own history.

    Returns:
        The front; `trials` holds everything that was measured.

    Raises:
        ValueError: fewer than one trial, an unknown objective, or data missing.
        TypeError: `objectives` is a single string.
        PliantError: the run folder belongs to another network, another search is running in it, or an objective gave
            no finite number.
    """
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials must be a whole number of at least 1, got {n_trials!r}")
    context = _context(net, data, hardware, settings, seed)
    read_by = gauges(objectives, context)
    with _opened(None if run is None else Path(run), context, read_by, settings.proposer) as (base, trials):
        meter = _Meter(context, read_by, base)
        points = _measure(meter, trials, n_trials, settings)
        front = _side_by_side(meter, Front(points, [gauge.axis for gauge in read_by]))
    if run is not None:
        front.save(Path(run) / "front.json")
    return front


def _context(net: Searchable, data: Any, hardware: Hardware | None, settings: SearchSettings, seed: int) -> Context:
    train = val = metric = None
    if data is not None:
        dataset = Dataset.of(data, seed=seed)
        train, metric = dataset.train, dataset.metric
        val = _part(dataset.val, settings.val_limit, seed)
    return Context(
        net,
        train,
        val,
        metric,
        make_hardware("cpu", threads=1) if hardware is None else hardware,
        settings.batch_size,
        settings.calibration_batches,
        settings.output,
        seed,
    )


def _part(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    # not simply the first ones: a split may be sorted by class
    return split.select(torch.randperm(len(split), generator=seeded(seed, "val"))[:limit])


@contextmanager
def _opened(
    run: Path | None, context: Context, read_by: Sequence[Gauge], proposer: Proposer
) -> Iterator[tuple[Measurements, Trials]]:
    """The files of a search, or their like in memory."""
    axes = [gauge.axis for gauge in read_by]
    about = {
        "network": context.network_digest,
        "objectives": [[gauge.axis.key, gauge.depends()] for gauge in read_by],
        "proposer": _named(proposer),
    }
    name = f"{'+'.join(axis.key for axis in axes)}, seed {context.seed}, {digest(about)[:12]}"
    if run is None:
        yield Measurements(), open_trials(None, name, context.net.space, axes)
        return
    check_run(run, context.net.space, context.architecture)
    with only_one(run):
        base = Measurements(run / "measurements.sqlite")
        try:
            yield base, open_trials(run, name, context.net.space, axes)
        finally:
            base.close()


def _named(proposer: Any) -> list[Any]:
    if not is_dataclass(proposer):
        return [type(proposer).__qualname__]
    return [type(proposer).__qualname__, {f.name: repr(getattr(proposer, f.name)) for f in fields(proposer)}]


class _Meter:
    """Reads objectives, through the measurements that are kept."""

    def __init__(self, context: Context, read_by: Sequence[Gauge], base: Measurements) -> None:
        self.context, self.gauges, self._base = context, tuple(read_by), base

    def point(self, config: Config) -> Point:
        """Measure one sub-network in every objective."""
        candidate = Candidate(self.context, config)
        readings = {gauge.axis.key: self._reading(gauge, candidate) for gauge in self.gauges}
        spread = {key: reading.spread for key, reading in readings.items() if reading.spread is not None}
        return Point(config, {key: reading.value for key, reading in readings.items()}, spread)

    def _reading(self, gauge: Gauge, candidate: Candidate) -> Reading:
        about = self._about(gauge, candidate.config.to_json())
        known = self._base.get(about)
        if known is None:
            reading = checked(gauge.read(candidate), gauge.axis, candidate.config)
            known = {"value": reading.value, "spread": reading.spread}
            self._base.put(about, known)
        return Reading(known["value"], known["spread"])

    def _about(self, gauge: Gauge, config: Any) -> dict[str, Any]:
        return {
            "network": self.context.network_digest,
            "config": config,
            "objective": gauge.axis.key,
            "of": gauge.depends(),
        }

    def together(self, gauge: Latency, configs: Sequence[Config]) -> dict[Config, tuple[Reading, bool]]:
        """Latencies read side by side, and whether a neighbour in speed could not be told apart."""
        configs = sorted(configs, key=Config.to_json)
        about = self._about(gauge, [config.to_json() for config in configs])
        known = self._base.get(about)
        if known is None:
            readings, near = gauge.compare([Candidate(self.context, config) for config in configs])
            tied = {config for pair in near for config in pair}
            known = [[readings[config].value, readings[config].spread, config in tied] for config in configs]
            self._base.put(about, known)
        return {c: (Reading(value, spread), tie) for c, (value, spread, tie) in zip(configs, known, strict=True)}


def _measure(meter: _Meter, trials: Trials, n_trials: int, settings: SearchSettings) -> list[Point]:
    space, seed = meter.context.net.space, meter.context.seed
    axes = [gauge.axis for gauge in meter.gauges]
    total = min(n_trials, space.size)
    points = trials.points()
    told = _Told(axes, total, settings.progress)
    while len(points) < total:
        # a pure function of the seed and the finished trials: a resumed search asks what an undisturbed one would
        rows = [[axis.cost(point.values[axis.key]) for axis in axes] for point in points]
        costs = np.asarray(rows, dtype=np.float64).reshape(len(points), len(axes))
        config = space.validate(
            settings.proposer.propose(space, [point.config for point in points], costs=costs, seed=seed)
        )
        if any(config == point.config for point in points):
            raise PliantError(f"the proposer repeated {config.to_json()}", where=type(settings.proposer).__qualname__)
        started = time.perf_counter()
        point = meter.point(config)
        trials.add(point)
        points.append(point)
        told.trial(points, time.perf_counter() - started)
    return points


class _Told:
    """One line per trial, for whoever watches."""

    def __init__(self, axes: Sequence[Axis], total: int, wanted: bool | None) -> None:
        self._axes, self._total = axes, total
        self._on = sys.stderr.isatty() if wanted is None else wanted
        self._console = Console(stderr=True, highlight=False)

    def trial(self, points: Sequence[Point], seconds: float) -> None:
        if not self._on:
            return
        front = Front(points, self._axes)
        best = ", ".join(f"{axis.key} {number(front.best(axis.key).values[axis.key])}" for axis in self._axes)
        self._console.print(
            f"[bold]{len(points):>4}[/]/{self._total}  {seconds:5.1f} s  front {len(front)}"
            f"  hypervolume {number(front.hypervolume())}  best {best}",
            soft_wrap=True,
        )


def _side_by_side(meter: _Meter, front: Front) -> Front:
    """The front with its latencies measured again, interleaved, so that they can be compared with each other.

    Slower readings may let other trials onto the front; those are measured too, all anew, until the front is stable
    or a few rounds are over.
    """
    for gauge in meter.gauges:
        if not isinstance(gauge, Latency):
            continue
        asked: set[Config] = set()
        for _ in range(_ROUNDS):
            new = {point.config for point in front} - asked
            if not new or len(front.trials) < 2:
                break
            asked |= new
            front = _with(front, gauge.axis.key, meter.together(gauge, list(asked)))
    return front


def _with(front: Front, key: str, readings: dict[Config, tuple[Reading, bool]]) -> Front:
    points = []
    for point in front.trials:
        if point.config in readings:
            reading, tied = readings[point.config]
            spread = {} if reading.spread is None else {key: reading.spread}
            point = replace(
                point,
                values={**point.values, key: reading.value},
                spread={**point.spread, **spread},
                ties=(key,) if tied else (),
            )
        points.append(point)
    return Front(points, front.objectives)
