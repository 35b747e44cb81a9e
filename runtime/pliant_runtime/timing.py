"""Latency measured so that it can be trusted on a machine that does other things too.

All candidates are timed side by side: a round calls every candidate in a fresh random order, a few times in a burst,
and keeps the fastest call of the burst, because whatever else runs on the machine only ever adds time. The figure of a
candidate is the median of its rounds, with their interquartile range; slow drifts hit all candidates of a round alike,
so two of them are compared by the ratio within rounds. One candidate runs twice under two names: what these twins
differ by is the noise of the measurement, and no smaller difference is ever called one.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

_WARM_UP_CALLS = 3
_MIN_CALLS, _MAX_CALLS = 3, 40
_BURST_SECONDS = 0.001
_MIN_ROUNDS = 11
_FLOOR = 0.01
_TWIN = "\0twin"


@dataclass(frozen=True)
class Latency:
    """Wall time of one call, in milliseconds.

    Args:
        median_ms: median over rounds of the fastest call of the round. This is *the* latency.
        iqr_ms: interquartile range of the same.
        min_ms: fastest call of all.
        wall_median_ms: median over every single call, with all disturbances in it.
        rounds: how many rounds were timed.
        calls: calls per round.
        threads: threads the candidate ran on.
    """

    median_ms: float
    iqr_ms: float
    min_ms: float
    wall_median_ms: float
    rounds: int
    calls: int
    threads: int

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Candidates that were timed side by side.

    Args:
        latencies: one figure per candidate, in the order given.
        noise: relative difference below which this measurement cannot tell two candidates apart.
        samples: milliseconds per candidate and round; equal positions belong to one round.
    """

    latencies: Mapping[str, Latency]
    noise: float
    samples: Mapping[str, tuple[float, ...]] = field(repr=False)

    def __getitem__(self, name: str) -> Latency:
        return self.latencies[name]

    def faster(self, one: str, other: str) -> bool | None:
        """Whether `one` is faster than `other`; None where the difference is within the noise.

        Raises:
            ValueError: a name that was not measured.
        """
        for name in (one, other):
            if name not in self.samples:
                raise ValueError(f"no candidate {name!r}; measured are {', '.join(self.samples)}")
        ratio, doubt = _paired(self.samples[one], self.samples[other])
        if abs(ratio) <= max(self.noise, doubt):
            return None
        return ratio < 0

    def rank(self) -> list[list[str]]:
        """Candidates from fast to slow; those in one inner list cannot be told apart from its first one."""
        order = sorted(self.latencies, key=lambda name: self.latencies[name].median_ms)
        tiers: list[list[str]] = []
        for name in order:
            if tiers and self.faster(tiers[-1][0], name) is None:
                tiers[-1].append(name)
            else:
                tiers.append([name])
        return tiers


def _paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Median log-ratio within rounds, and half the width of its 95 % interval (the notch of a box plot)."""
    ratios = np.log(np.asarray(one)) - np.log(np.asarray(other))
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), float(1.57 * (high - low) / math.sqrt(len(ratios)))


def compare(
    candidates: Mapping[str, Callable[[], Any]], *, threads: int, rounds: int, seconds: float, seed: int = 0
) -> Comparison:
    """Time callables side by side.

    Args:
        candidates: what to call, by name.
        threads: threads they run on (recorded, not set).
        rounds: most rounds.
        seconds: time after which no further round starts, once there are 11 (or `rounds`, if fewer).
        seed: of the order within rounds.

    Raises:
        ValueError: no candidates, or fewer than 3 rounds.
    """
    if not candidates:
        raise ValueError("nothing to measure: no candidates")
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3, got {rounds}")
    calls = {name: _warm_up(function) for name, function in candidates.items()}
    functions = dict(candidates)
    # The fastest candidate suffers most from noise, in proportion; it is the one that is measured twice.
    quickest = min(calls, key=lambda name: calls[name][1])
    functions[_TWIN], calls[_TWIN] = functions[quickest], calls[quickest]
    best: dict[str, list[float]] = {name: [] for name in functions}
    every: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(seed)
    with _collector_off():
        start = time.perf_counter()
        for done in range(rounds):
            if done >= min(_MIN_ROUNDS, rounds) and time.perf_counter() - start > seconds:
                break
            for name in order.sample(list(functions), len(functions)):
                times = _burst(functions[name], calls[name][0])
                best[name].append(min(times))
                every[name].extend(times)
    ratio, doubt = _paired(best[_TWIN], best[quickest])
    latencies = {name: _summary(best[name], every[name], calls[name][0], threads) for name in candidates}
    samples = {name: tuple(best[name]) for name in candidates}
    return Comparison(latencies, max(_FLOOR, abs(ratio) + doubt), samples)


def _burst(function: Callable[[], Any], calls: int) -> list[float]:
    function()  # brings code and weights back into the caches the previous candidate has filled
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _warm_up(function: Callable[[], Any]) -> tuple[int, float]:
    """Calls per burst, and the fastest time seen in milliseconds."""
    fastest = min(_burst(function, _WARM_UP_CALLS))
    calls = math.ceil(_BURST_SECONDS * 1000 / max(fastest, 1e-6))
    return max(_MIN_CALLS, min(calls, _MAX_CALLS)), fastest


def _summary(best: Sequence[float], every: Sequence[float], calls: int, threads: int) -> Latency:
    low, middle, high = (float(value) for value in np.percentile(best, [25, 50, 75]))
    return Latency(middle, high - low, min(best), float(np.median(every)), len(best), calls, threads)


@contextmanager
def _collector_off() -> Any:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
