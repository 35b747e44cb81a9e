"""What the rows share: the cache, the workers, the clock, the results file."""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pliant.core import PliantError, atomic_folder, read_json, write_atomic, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
CACHE_VARIABLE = "PLIANT_BENCH_CACHE"
WORKERS = 2
REFERENCE_MATMUL_MS = 18.7  # float32 1024^3 on one thread of the machine that the bars were written for
COLUMNS = ("figures", "baseline", "paper")
KEYS = (*COLUMNS, "data", "seeds", "seconds", "cpu_seconds", "machine", "commit")


@dataclass(frozen=True)
class Outcome:
    """What a row hands back.

    Args:
        figures: what was measured, name to number.
        data: on what.
        seeds: which ones.
        baseline: the same names where comparable.
        paper: published figures under the same names.
        cpu_seconds: of all trainings and measurements the figures come from, those found in the cache included.
        settings: how, in JSON; for the reader.
    """

    figures: Mapping[str, float]
    data: str
    seeds: Sequence[int]
    baseline: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


# -- the cache --------------------------------------------------------------------------------------------------------


def cache_root() -> Path:
    """Where trainings are kept: $PLIANT_BENCH_CACHE, else `bench/cache`. The folder makes git ignore it."""
    root = Path(os.environ.get(CACHE_VARIABLE, ROOT / "bench" / "cache"))
    if not (root / ".gitignore").exists():
        write_atomic(root / ".gitignore", "*\n")
    return root


def key_of(what: Mapping[str, Any]) -> str:
    """The name under which `what` is cached: equal content gives an equal name."""
    text = json.dumps(what, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cached(what: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder of `what` and the facts about it, made only once.

    Args:
        what: JSON data that determines the result.
        make: fills the folder it is given and returns JSON facts.

    Returns:
        The finished folder and the facts. A `make` that fails leaves nothing behind.
    """
    folder = cache_root() / key_of(what)
    if not folder.is_dir():
        with atomic_folder(folder) as aside:
            facts = dict(make(aside))
            write_json(aside / "facts.json", {"what": what, "facts": facts})
    return folder, dict(read_json(folder / "facts.json")["facts"])


# -- workers and clocks -----------------------------------------------------------------------------------------------


def one_thread() -> None:
    """Figures are for one thread; every process calls this first."""
    torch.set_num_threads(1)


@cache
def sources(path: str, rooms: tuple[str, ...]) -> str:
    """A hash of the sources that decide a row's facts: its own file and rooms of pliant."""
    digest = hashlib.sha256(Path(path).read_bytes())
    for room in rooms:
        for source in sorted((ROOT / "pliant" / room).rglob("*.py")):
            digest.update(f"{source.relative_to(ROOT)}\n".encode() + source.read_bytes())
    return digest.hexdigest()


def in_workers(work: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """`work(job)` for every job on two processes of one thread each; results in the order of the jobs.

    The results of jobs that are done stay (in the cache) when one fails or the whole is stopped.
    """
    todo = list(jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(WORKERS, max(1, len(todo))), mp_context=context, initializer=one_thread) as pool:
        futures = {pool.submit(work, job): number for number, job in enumerate(todo)}
        results: dict[int, Any] = {}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
    return [results[number] for number in range(len(todo))]


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Process CPU seconds of one call."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def matmul_ms(repeats: int = 3) -> float:
    """CPU milliseconds of a float32 1024^3 matrix product, the least of `repeats`."""
    left, right = torch.ones(2, 1024, 1024)
    return min(cpu_seconds(lambda: left @ right) for _ in range(repeats)) * 1e3


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every function in every round; a round calls each once."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(cpu_seconds(function))
    return times


# -- results ----------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Processor, cores, system and versions, in one line."""
    from pliant.export.hardware import machine as described

    return f"{described()}, torch {torch.__version__}"


def commit() -> str:
    """The commit the figures were measured on, with `+` where files differ from it; "none" before the first."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "pliant", "runtime"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return head + ("+" if changed.stdout.strip() else "")


def write_result(name: str, outcome: Outcome, seconds: float, cpu: float) -> Path:
    """Write `bench/results/NAME.json`.

    Args:
        name: of the row.
        outcome: what it measured.
        seconds: wall seconds of this run.
        cpu: CPU seconds of this run; used where the outcome counts none.

    Raises:
        PliantError: a figure that is no finite number.
    """
    numbers = {column: _numbers(name, getattr(outcome, column)) for column in COLUMNS}
    data = {
        **numbers, "data": outcome.data, "seeds": list(outcome.seeds), "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu if outcome.cpu_seconds is None else outcome.cpu_seconds, 1),
        "machine": machine(), "python": platform.python_version(), "commit": commit(),
        "settings": dict(outcome.settings),
    }  # fmt: skip
    path = RESULTS / f"{name}.json"
    write_json(path, data)
    return path


def _numbers(name: str, values: Mapping[str, float]) -> dict[str, float]:
    for figure, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise PliantError(f"figure {figure!r} is {value!r}, not a finite number", where=f"bench row {name}")
    return {figure: value if isinstance(value, int) else float(f"{value:.6g}") for figure, value in values.items()}
