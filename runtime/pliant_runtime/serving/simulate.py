"""A discrete-event simulation of the server: the very controller that serves, with a clock that jumps."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pliant_runtime.serving.controller import POLICIES, Controller, Settings, Shed, Work, policy
from pliant_runtime.serving.table import Table
from pliant_runtime.serving.trace import ANSWERED, SHED, Phase, Sample, split, summary

HELD = 0.995
"""Share of the requests that must be answered in time for a load to count as held."""


@dataclass(frozen=True)
class Noise:
    """How a machine differs from its latency table.

    Args:
        spread: every batch takes 1 + spread * (an exponential variable of mean 1) times what the table says.
        spikes_per_s: how often, per second of work, the core is given to somebody else.
        spike_s: mean seconds it is then away.
        ours_s, away_s: a core shared with others: mean seconds it is ours, and away, in turns, whether we compute or
            not; never away by default.
    """

    spread: float = 0.0
    spikes_per_s: float = 0.0
    spike_s: float = 0.0
    ours_s: float = 1.0
    away_s: float = 0.0

    @property
    def slowdown(self) -> float:
        """Mean time over that of the table, while the core is ours."""
        return (1 + self.spread) * (1 + self.spikes_per_s * self.spike_s)

    def seconds(self, expected: float, draw: random.Random) -> float:
        """Time one batch really takes."""
        taken = expected * (1 + self.spread * draw.expovariate(1.0)) if self.spread else expected
        if self.spikes_per_s and draw.random() < taken * self.spikes_per_s:
            taken += draw.expovariate(1.0 / self.spike_s)
        return taken


class _Core:
    """When a shared core is ours."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self._noise, self._draw = noise, random.Random(f"core {seed}")
        self._begins = self._ends = 0.0

    def end(self, now: float, work: float) -> float:
        """When `work` seconds of computing that begin `now` are done; calls come in the order of time."""
        if not self._noise.away_s:
            return now + work
        while True:
            begins = max(now, self._begins)
            if begins + work <= self._ends:
                return begins + work
            if begins < self._ends:
                work -= self._ends - begins
            self._begins = self._ends + self._draw.expovariate(1 / self._noise.away_s)
            self._ends = self._begins + self._draw.expovariate(1 / self._noise.ours_s)


QUIET = Noise()
BUSY = Noise(0.3, 1.0, 0.01)


def arrivals(phases: Sequence[Phase], seed: int) -> list[float]:
    """Times of a Poisson process whose rate changes from phase to phase."""
    draw = random.Random(seed)
    times, begun = [], 0.0
    for phase in phases:
        now = begun
        while phase.rate > 0 and (now := now + draw.expovariate(phase.rate)) < begun + phase.seconds:
            times.append(now)
        begun += phase.seconds
    return times


def simulate(
    control: Controller, times: Sequence[float], *, rows: int = 1, noise: Noise = QUIET, seed: int = 0
) -> list[Sample]:
    """Every request of a run.

    Args:
        control: a fresh controller.
        times: when requests arrive, ascending.
        rows: samples per request.
        noise: how the machine differs from the table.
        seed: of the noise.
    """
    draw = random.Random(seed)
    free = [_Core(noise, seed + number) for number in range(control.settings.lanes)]
    cores_of: dict[int, _Core] = {}
    ends: list[tuple[float, int, Work, float]] = []
    samples: list[Sample] = []
    place = 0
    while place < len(times) or ends:
        if ends and (place == len(times) or ends[0][0] <= times[place]):
            now, _, work, begun = heapq.heappop(ends)
            free.append(cores_of.pop(work.number))
            control.done(work, now - begun)
            samples += [Sample(t.arrived, now - t.arrived, ANSWERED, work.subnet) for t in work.tickets]
        else:
            now = times[place]
            place += 1
            if isinstance(control.arrive(now, rows), Shed):
                samples.append(Sample(now, 0.0, SHED))
        while (started := control.next_batch(now)) is not None:
            core = cores_of[started.number] = free.pop()
            ends_at = core.end(now, noise.seconds(started.expected, draw))
            heapq.heappush(ends, (ends_at, started.number, started, now))
    return samples


def compared(
    table: Table, settings: Settings, phases: Sequence[Phase], *, rows: int = 1, noise: Noise = QUIET, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Figures of every policy on the same arrivals, the whole run and (`phases`) each phase."""
    times = arrivals(phases, seed)
    quality = dict(enumerate(table.quality))
    found = {}
    for name in POLICIES:
        samples = simulate(Controller(table, settings, policy(name)), times, rows=rows, noise=noise, seed=seed)
        parts = [summary(part, settings.slo_s, quality) for part in split(samples, phases)]
        found[name] = summary(samples, settings.slo_s, quality) | {"phases": parts}
    return found


def at_load(
    table: Table, settings: Settings, rate: float, *, name: str = "adaptive", rows: int = 1, noise: Noise = QUIET,
    seed: int = 0, requests: int = 3000,
) -> dict[str, Any]:  # fmt: skip
    """Figures of one policy under a constant load of `rate` requests per second."""
    seconds = max(requests / rate, 20 * settings.slo_s)
    control = Controller(table, settings, policy(name))
    samples = simulate(control, arrivals([Phase(rate, seconds)], seed), rows=rows, noise=noise, seed=seed)
    return summary(samples, settings.slo_s, dict(enumerate(table.quality)))


def holds(figures: dict[str, Any]) -> bool:
    """Whether the promise was kept: `HELD` of all offered requests answered in time."""
    return figures["in_slo_of_offered"] is not None and figures["in_slo_of_offered"] >= HELD


def capacity(
    table: Table, settings: Settings, *, name: str = "adaptive", rows: int = 1, noise: Noise = QUIET, seed: int = 0,
    requests: int = 3000,
) -> float:  # fmt: skip
    """The highest constant load that a policy holds, in requests per second, to about 2 %; 0 where it holds none."""

    def held(rate: float) -> bool:
        return holds(at_load(table, settings, rate, name=name, rows=rows, noise=noise, seed=seed, requests=requests))

    high = 1.2 * settings.lanes / (table.row_seconds(table.ladder[0]) * rows)
    low = 0.0
    if held(high):  # batches of the largest measured size do better than the table's best size
        return high
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        if middle < 1e-3:
            return 0.0
        low, high = (middle, high) if held(middle) else (low, middle)
    return low


LOADS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)


def answer(
    table: Table, settings: Settings, *, rows: int = 1, noise: Noise = QUIET, seed: int = 0, requests: int = 3000
) -> dict[str, Any]:
    """What load can this machine hold? As plain JSON data.

    Returns:
        `capacity`: per policy the highest load held, in requests per second; `largest_alone`: the inverse of the
        largest's own time, to which `loads` (figures of the adaptive rule) are relative.
    """
    unit = settings.lanes / (table.row_seconds(table.ladder[-1], settings.slo_s / 4) * rows)
    options: dict[str, Any] = {"rows": rows, "noise": noise, "seed": seed, "requests": requests}
    held = {name: capacity(table, settings, name=name, **options) for name in POLICIES}
    loads = []
    for multiple in LOADS:
        figures = at_load(table, settings, unit * multiple, **options)
        loads.append({"load": multiple, "rate": unit * multiple, "held": holds(figures), **figures})
        if figures["shed"] > 0.3 * figures["offered"]:
            break
    return {
        "slo_ms": settings.slo_s * 1e3, "rows": rows, "lanes": settings.lanes, "dynamic_range": table.dynamic_range,
        "largest_alone": unit, "capacity": held, "loads": loads, "table": table.to_dict(),
    }  # fmt: skip
