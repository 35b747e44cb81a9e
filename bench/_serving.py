"""What the rows of serving share: the family, a server of its own process, and the load run inside this one."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench import _families as families
from bench._common import cached, sources
from bench.train_once import CONTESTS, SEEDS
from pliant.deploy import compile as compiled
from pliant_runtime.serving.controller import Settings
from pliant_runtime.serving.messages import Refusal
from pliant_runtime.serving.metrics import Metrics
from pliant_runtime.serving.model import Model, open_model, samples
from pliant_runtime.serving.service import Service
from pliant_runtime.serving.simulate import arrivals
from pliant_runtime.serving.table import Table
from pliant_runtime.serving.trace import ANSWERED, SHED, Phase, Sample, summary

SHARES = (1.0, 0.6, 0.35, 0.2, 0.1, 0.04)  # of the whole network's FLOPs
ROWS = 32
DATA = "Fashion-MNIST, requests of 32 random images; quality is accuracy on the validation split"


def artifact() -> Path:
    """Six sub-networks of the residual family of train-once, trained on Fashion-MNIST.

    Its narrowest layers still have eight channels: narrower ones are hardly faster, and the range would be too small.
    """
    contest = CONTESTS["resnet"]
    job = contest.family("nested", SEEDS[0], contest.rates[-1])
    what = {"artifact": job.what(), "shares": SHARES, "code": sources(__file__, ("deploy", "export"))}

    def make(folder: Path) -> dict[str, Any]:
        net = families.trained(job)
        configs = families.picks(net, SHARES)  # type: ignore[arg-type]
        compiled(net, folder / "net.pliant", configs=configs, data=families.dataset(job.task))
        return {}

    return cached(what, make)[0] / "net.pliant"


def promise_s(path: Path, rows: int = ROWS) -> float:
    """50 ms, or six times what the largest takes for one request alone if that is more."""
    table = open_model(path, slo_s=60.0).table
    return max(0.05, 6 * table.cost(table.ladder[-1], rows))


@cache
def opened(path: Path, slo_s: float) -> Model:
    """The measured artifact."""
    return open_model(path, slo_s=slo_s)


def unit(table: Table, slo_s: float, rows: int = ROWS) -> float:
    """Requests per second that the largest alone computes."""
    return 1 / (table.row_seconds(table.ladder[-1], slo_s / 4) * rows)


def in_process(model: Model, slo_s: float, policy: str, phases: Sequence[Phase], *, seed: int = 0) -> list[Sample]:
    """The load through queue, threads and networks, without HTTP; latency from the scheduled time."""
    return asyncio.run(_in_process(model, slo_s, policy, phases, seed))


async def _in_process(model: Model, slo_s: float, policy: str, phases: Sequence[Phase], seed: int) -> list[Sample]:
    service = Service(model.family.path, model, Settings(slo_s=slo_s), metrics=Metrics(slo_s), policy_name=policy)
    watching = asyncio.create_task(service.watch())  # the guard against a late event loop is part of what serves
    rows = samples(model.family, ROWS)
    found: list[Sample] = []
    begun = time.perf_counter()

    async def one(due: float) -> None:
        outcome, subnet = ANSWERED, None
        try:
            _, subnet = await service.infer(service.engine, rows, None, None)
        except Refusal:
            outcome = SHED
        found.append(Sample(due, max(0.0, time.perf_counter() - begun - due), outcome, subnet))

    tasks = set()
    for due in arrivals(phases, seed):
        while (ahead := begun + due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        tasks.add(task := asyncio.create_task(one(due)))
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(0)
    if tasks:
        await asyncio.wait(tasks)
    await service.close()
    watching.cancel()
    return found


def contest(runs: dict[str, dict[str, Any]], ours: str) -> dict[str, float]:
    """The figures of a step: ours beside always the largest and always the smallest."""
    own, low, high = runs[ours], runs["smallest"]["quality"], runs["largest"]["quality"]
    return {
        "accepted_lost": own["failed"],
        "in_slo_share": own["in_slo_share"] or 0.0,
        "shed_share": own["shed"] / own["offered"],
        "accuracy_gap_share": (own["quality"] - low) / (high - low),
        "largest_in_slo_share": runs["largest"]["in_slo_of_offered"],
        "smallest_in_slo_share": runs["smallest"]["in_slo_of_offered"],
        "round_robin_in_slo_share": runs["round_robin"]["in_slo_of_offered"],
        "p99_ms": own["p99_ms"] or 0.0,
    }


def told(found: list[Sample], slo_s: float, table: Table) -> dict[str, Any]:
    """Figures of one run."""
    return summary(found, slo_s, dict(enumerate(table.quality)))


@contextmanager
def server(path: Path, slo_s: float, *words: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server in a process of its own, and its address. Its log is dropped after the first line."""
    command = [sys.executable, "-m", "pliant_runtime", "serve", str(path), "--slo-ms", f"{slo_s * 1e3}", "--port", "0"]
    running = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert running.stderr is not None
    try:
        address = json.loads(running.stderr.readline())["address"]
        sink = subprocess.Popen(["cat"], stdin=running.stderr, stdout=subprocess.DEVNULL)
        yield running, address
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        running.stderr.close()
        sink.wait()


def processes(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def pss_mb(pid: int) -> float:
    """Proportional set size: memory with shared pages counted once among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def median_ms(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return float(np.median(seconds)) * 1e3
