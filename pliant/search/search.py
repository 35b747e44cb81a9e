"""The search: which sub-networks are worth having on this hardware."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pliant.core import Config, PliantError
from pliant.data import Dataset
from pliant.export import Hardware
from pliant.export import hardware as make_hardware
from pliant.search.context import Context, Gauge, Reading, Searchable, part_of
from pliant.search.front import Front
from pliant.search.measurements import Measurements, digest
from pliant.search.meter import Meter
from pliant.search.objectives import Judged, Latency, gauges
from pliant.search.outcome import FAILED, FINISHED, Outcome
from pliant.search.progress import Told
from pliant.search.searchers import AskTell
from pliant.search.settings import SearchSettings
from pliant.search.trials import Trials, check_run, only_one, open_trials
from pliant.search.workers import Here, Job, OnRay, Pool, Processes, Work

_ROUNDS = 4
_USUAL = SearchSettings()


def search(
    net: Searchable,
    data: Any = None,
    *,
    objectives: Sequence[Judged] = (
        "accuracy",
        "latency",
    ),
    hardware: Hardware | None = None,
    n_trials: int = 60,
    run: str | Path | None = None,
    settings: SearchSettings = _USUAL,
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
        objectives: names (`accuracy`, `latency`, `memory`, `energy`, `robustness`, `flops`, `parameters`, `bytes`, or
            a metric), `Objective`s, `Energy` and `Robustness` of your own, or functions of module and config.
        hardware: where latency is measured; by default one thread of this processor.
        n_trials: how many sub-networks to try in all, those of earlier calls in the same folder, those that failed and
            those stopped early included; the whole space where it is smaller.
        run: folder for `space.json`, `trials.journal`, `measurements.sqlite` and `front.json`; None keeps nothing.
        settings: how to measure.
        seed: of every choice; a search with another seed in the same folder starts its own history.

    Returns:
        The front; `trials` holds everything that was measured.

    Raises:
        ValueError: fewer than one trial, an unknown objective, or data missing.
        TypeError: `objectives` is a single string.
        PliantError: the run folder belongs to another network, another search is running in it, an objective raised or
            gave no finite number (unless the settings say to skip those), or every trial failed.
    """
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials must be a whole number of at least 1, got {n_trials!r}")
    context = _context(net, data, hardware, settings, seed)
    read_by = gauges(objectives, context)
    with _opened(None if run is None else Path(run), context, read_by, settings=settings) as files:
        outcomes = _measure(files, n_trials, settings)
        points = [outcome.point for outcome in outcomes if outcome.status == FINISHED]
        if not points:
            raise PliantError(f"none of {len(outcomes)} trials finished; the last: {outcomes[-1].problem}")
        front = _side_by_side(files.meter, Front(points, files.meter.axes), settings.on_failure)
    if run is not None:
        front.save(Path(run) / "front.json")
    return front


def _context(net: Searchable, data: Any, hardware: Hardware | None, settings: SearchSettings, seed: int) -> Context:
    train = val = metric = None
    if data is not None:
        dataset = Dataset.of(data, seed=seed)
        train, metric = dataset.train, dataset.metric
        val = part_of(dataset.val, settings.val_limit, seed)
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


@dataclass(frozen=True)
class _Files:
    """The files of a search, or their like in memory, and what measures into them."""

    meter: Meter
    trials: Trials
    path: Path | None
    held: list[int]


@contextmanager
def _opened(
    run: Path | None, context: Context, read_by: Sequence[Gauge], *, settings: SearchSettings
) -> Iterator[_Files]:
    axes, again = [gauge.axis for gauge in read_by], settings.on_failure == "stop"
    about: dict[str, Any] = {
        "network": context.network_digest,
        "objectives": [[gauge.axis.key, gauge.depends()] for gauge in read_by],
        "proposer": _named(settings.proposer),
    }
    if settings.rungs is not None:
        about["rungs"] = _named(settings.rungs)
    name = f"{'+'.join(axis.key for axis in axes)}, seed {context.seed}, {digest(about)[:12]}"
    if run is None:
        meter = Meter(context, read_by, Measurements(), rungs=settings.rungs, again=again)
        yield _Files(meter, open_trials(None, name, context.net.space, axes), None, [])
        return
    check_run(run, context.net.space, context.architecture)
    with only_one(run) as held:
        path = run / "measurements.sqlite"
        base = Measurements(path)
        try:
            meter = Meter(context, read_by, base, rungs=settings.rungs, again=again)
            yield _Files(meter, open_trials(run, name, context.net.space, axes), path, held)
        finally:
            base.close()


def _named(proposer: Any) -> list[Any]:
    if not is_dataclass(proposer):
        return [type(proposer).__qualname__]
    return [type(proposer).__qualname__, {f.name: repr(getattr(proposer, f.name)) for f in fields(proposer)}]


def _measure(files: _Files, n_trials: int, settings: SearchSettings) -> list[Outcome]:
    meter, trials = files.meter, files.trials
    space, axes = meter.context.net.space, meter.axes
    total = min(n_trials, space.size)
    outcomes = trials.history()
    if len(outcomes) >= total:
        return outcomes
    pool = _pool(files, settings.workers)
    told = Told(axes, total, settings.progress, workers=pool.count)
    # a pure function of the seed and the finished trials: a resumed search asks what an undisturbed one would
    loop = AskTell(
        settings.proposer, space, objectives=len(axes), seed=meter.context.seed, lag=min(pool.count, total) - 1
    )
    for outcome in outcomes:
        loop.tell(outcome.config, outcome.costs(axes))
    begun: dict[int, Config] = {}
    try:
        while len(outcomes) < total:
            while len(loop) < total and len(loop) - len(outcomes) < pool.count:
                number, config = len(loop), loop.ask()
                begun[number] = config
                pool.submit(number, _job(meter, config, outcomes[: max(0, number - loop.lag)]))
            number = len(outcomes)
            outcome = Outcome.from_dict(pool.take(number))
            trials.add(outcome, again=settings.on_failure == "stop")
            if outcome.status == FAILED and settings.on_failure == "stop":
                raise _error_of(outcome)
            loop.tell(begun.pop(number), outcome.costs(axes))
            outcomes.append(outcome)
            told.trial(outcomes)
    finally:
        pool.close()
    return outcomes


def _error_of(outcome: Outcome) -> PliantError:
    error = PliantError(outcome.problem, fix="give on_failure='skip' to go on without such sub-networks")
    if outcome.trace:
        error.add_note(outcome.trace)
    return error


def _job(meter: Meter, config: Config, before: Sequence[Outcome]) -> Job:
    """A trial as JSON data; `before` are the trials that decide what is promising."""
    axes = meter.axes
    bars = [
        [[axis.cost(o.rungs[rung][axis.key]) for axis in axes] for o in before if len(o.rungs) > rung]
        for rung in range(len(meter.rungs))
    ]
    problem = Outcome(config, FAILED, problem="the worker was lost")
    return {"config": dict(config), "bars": bars, "failed": problem.to_dict()}


def _pool(files: _Files, workers: int | str) -> Pool:
    if workers == "ray":
        return _Faraway(files.meter)
    if workers == 1:
        return Here(lambda: partial(_work, files.meter))
    return Processes(partial(_in_process, files.meter, files.path), int(workers), closing=files.held)


def _in_process(meter: Meter, path: Path | None) -> Work:
    """In a forked process: a connection of its own to the database."""
    return partial(_work, meter.on(Measurements(path)))


def _work(meter: Meter, job: Job) -> dict[str, Any]:
    begun = time.perf_counter()
    outcome = meter.measure(Config(job["config"]), job["bars"])
    return replace(outcome, seconds=time.perf_counter() - begun).to_dict()


class _Faraway(OnRay):
    """Ray, where the database is not: known figures travel with the jobs, new ones come back with the outcomes."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        net = type(meter.context.net)
        by_files = [net] if hasattr(net, "save") and hasattr(net, "load") else []  # a traced graph cannot be pickled
        super().__init__(partial(_elsewhere, meter.on(None)), by_files=by_files)

    def submit(self, number: int, job: Job) -> None:
        super().submit(number, {**job, "known": self._meter.known(Config(job["config"]))})

    def arrived(self, outcome: dict[str, Any]) -> dict[str, Any]:
        for about, value in outcome.get("new", ()):
            self._meter.base.put(about, value)
        return {key: value for key, value in outcome.items() if key != "new"}


def _elsewhere(meter: Meter) -> Work:
    def work(job: Job) -> dict[str, Any]:
        base = Measurements()
        for about, value in job["known"]:
            base.put(about, value)
        here = meter.on(base)
        outcome = _work(here, job)
        return {**outcome, "new": here.known(Config(job["config"]))}

    return work


def _side_by_side(meter: Meter, front: Front, on_failure: str) -> Front:
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
            try:
                readings = meter.together(gauge, list(asked))
            except Exception as error:  # a device that is gone
                problem = f"the latencies of the front could not be measured again ({type(error).__name__}: {error})"
                if on_failure == "stop":
                    raise PliantError(problem, fix="search again when the device is back; nothing is lost") from error
                warnings.warn(f"{problem}; they stay as they were measured one by one", stacklevel=3)
                return front
            front = _with(front, gauge.axis.key, readings)
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
