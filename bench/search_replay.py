"""The default search against NSGA-II and LINAS on measured sub-networks: evaluations to the same hypervolume."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import _nas as nas
from bench import _rivals as rivals
from bench._common import Outcome, cached, cpu_seconds, in_workers, one_thread, sources
from pliant.search import Proposer, Ridge
from pliant.search import codes as c
from pliant.search.pareto import Array, hypervolume
from pliant.search.predictors import fit_ridge

SEEDS = tuple(range(20))
EVALUATIONS = {"default": 160, "nsga2": 500, "nsga2_even": 500, "linas": 250}
"""How far each is followed."""
REQUIRED = ("evals_to_nsga2_500", "evals_to_linas_250", "seconds_100k")
_HERE = Path(__file__).parent
_SEARCH = ("core", "search")


class Recorder:
    """Stands before the surrogate and keeps what it answered."""

    def __init__(self) -> None:
        self.answers: list[Array] = []

    def __call__(self, codes: nas.Codes) -> Array:
        self.answers.append(nas.surrogate().costs(codes))
        return self.answers[-1]

    def course(self) -> list[float]:
        """The hypervolume after each evaluation."""
        costs = np.concatenate(self.answers)
        course, front = [], np.zeros((0, 2))
        for row in costs:
            if not (front <= row).all(axis=1).any():
                front = np.concatenate([front[~(row <= front).all(axis=1)], row[None]])
            course.append(hypervolume(front, nas.REFERENCE))
        return course


def proposed(proposer: Proposer, evaluations: int, *, seed: int, record: Recorder) -> None:
    """A search of the space with its conditions, as `pliant.search` runs one."""
    space = nas.space()
    configs: list[Any] = []
    costs = np.zeros((0, 2))
    while len(configs) < evaluations:
        config = proposer.propose(space, configs, costs=costs, seed=seed)
        configs.append(config)
        costs = np.concatenate([costs, record(c.encode(space, [config]))])


def course_of(job: tuple[str, int, int]) -> dict[str, Any]:
    """Hypervolumes of one search (name, evaluations, seed) and its CPU seconds, from the cache where it is known."""
    name, evaluations, seed = job

    def make(folder: Path) -> dict[str, Any]:
        one_thread()
        nas.surrogate()
        begun = time.process_time()
        record, rng = Recorder(), np.random.default_rng(seed)
        if name == "default":
            proposed(Ridge(), evaluations, seed=seed, record=record)
        elif name == "linas":
            rivals.linas(record, evaluations, rng=rng)
        else:
            rivals.nsga2(record, evaluations, rng=rng, breed=rivals.even if name == "nsga2_even" else rivals.published)
        return {"cpu_seconds": time.process_time() - begun, "course": record.course()[:evaluations]}

    code = [sources(str(_HERE / f"{file}.py"), ()) for file in ("_nas", "_rivals", "search_replay")]
    what = {"row": "search-replay", "search": name, "evaluations": evaluations, "seed": seed, "code": code}
    if name == "default":
        what["search_code"] = sources(str(_HERE / "_nas.py"), _SEARCH)
    return cached(what, make)[1]


def reached(course: Sequence[float], level: float) -> int:
    """After how many evaluations a course is at a level; one more than it has where it never is."""
    above = np.flatnonzero(np.asarray(course) >= level)
    return int(above[0]) + 1 if len(above) else len(course) + 1


def seconds_of(count: int, rows: int = 100) -> float:
    """CPU seconds of `count` predictions (encoding included) by a predictor fitted to `rows` rows."""
    data, space = nas.rows(), nas.space()
    picks = np.random.default_rng(0).permutation(len(data.codes))[:rows]
    hot, levels = c.one_hot(space, data.codes[picks]), c.levels(space, data.codes[picks])
    model = fit_ridge(hot, levels, targets=data.accuracy[picks])
    asked = c.uniform(space, count, np.random.default_rng(1))

    def predict() -> None:
        for part in np.array_split(asked, max(1, count // 10_000)):
            model.mean(c.one_hot(space, part), c.levels(space, part))

    return cpu_seconds(predict)


def run(seeds: Sequence[int] = SEEDS, evaluations: dict[str, int] | None = None) -> Outcome:
    """The row.

    Args:
        seeds: one search of every kind for each.
        evaluations: how far each kind is followed.
    """
    one_thread()
    limits = EVALUATIONS if evaluations is None else evaluations
    jobs = [(name, limit, seed) for seed in seeds for name, limit in limits.items()]
    courses: dict[str, list[list[float]]] = {name: [] for name in limits}
    facts = in_workers(course_of, jobs)
    for (name, _, _), fact in zip(jobs, facts, strict=True):
        courses[name].append(fact["course"])
    ends = {name: float(np.median([course[-1] for course in found])) for name, found in courses.items()}
    figures: dict[str, float] = {}
    for name, figure in _named(limits):
        counts = [reached(course, ends[name]) for course in courses["default"]]
        low, middle, high = np.percentile(counts, [25, 50, 75])
        figures |= {figure: middle, f"{figure}_q1": low, f"{figure}_q3": high, f"{figure}_worst": max(counts)}
    figures["seconds_100k"] = seconds_of(100_000)
    figures |= {f"hypervolume_{name}": value for name, value in ends.items()}
    at = min(150, limits["default"])
    figures[f"hypervolume_default_{at}"] = float(np.median([course[at - 1] for course in courses["default"]]))
    return Outcome(
        figures, nas.DATA, tuple(seeds), baseline={figure: limits[name] for name, figure in _named(limits)},
        cpu_seconds=sum(fact["cpu_seconds"] for fact in facts),
        settings=_told(limits, float(nas.surrogate().residuals.std())),
    )  # fmt: skip


def _named(limits: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"evals_to_{name}_{limits[name]}") for name in limits if name != "default"]


def _told(limits: dict[str, int], noise: float) -> dict[str, Any]:
    return {
        "surrogate": "accuracy: gradient boosting on all rows, plus noise that is fixed for each architecture, drawn"
        " from the residuals of that fit; MACs: exact sums over blocks, which reproduce every row",
        "noise_points": noise, "rivals": rivals.__doc__, "evaluations": limits,
        "nsga2_even": "NSGA-II with uniform crossover and mutation, stronger here than the published operators",
        "level": "median over seeds of the rival's hypervolume at its last evaluation",
        "counted": "evaluations of the default search (Ridge) to that level: median and quartiles over seeds; a search"
        " that does not get there counts as one more than it was followed",
        "reference": "70 %, 600 million MACs", "default": repr(Ridge()),
    }  # fmt: skip
