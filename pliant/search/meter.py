"""Measuring one sub-network in every objective, through the measurements that are kept."""

import copy
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pliant.core import Config, PliantError
from pliant.search.context import Candidate, Context, Gauge, Reading, checked, part_of
from pliant.search.front import Axis
from pliant.search.measurements import Measurements, digest
from pliant.search.objectives import Latency
from pliant.search.outcome import FAILED, FINISHED, STOPPED, Outcome, Row
from pliant.search.pareto import ranks
from pliant.search.qualities import Quality
from pliant.search.settings import Rungs


class Meter:
    """Reads objectives, through the measurements that are kept.

    Args:
        context: what is read from.
        gauges: what reads.
        base: where figures are kept.
        rungs: cheap looks before the whole.
        again: whether what failed earlier is tried once more.
    """

    def __init__(
        self, context: Context, gauges: Sequence[Gauge], base: Measurements, *, rungs: Rungs | None, again: bool
    ) -> None:
        self.context, self.gauges, self.base, self.again = context, tuple(gauges), base, again
        self.keep = rungs.keep if rungs else 1.0
        self.rungs = [self._cheaper(count) for count in rungs.batches] if rungs else []
        if rungs and not self.rungs[0]:
            raise ValueError("rungs look at parts of the validation split, and no objective is read from it")

    def on(self, base: Measurements | None) -> "Meter":
        """The same on another database; None leaves it without one, to travel."""
        found = copy.copy(self)
        found.base = base  # type: ignore[assignment]  # set before it is used
        return found

    @property
    def axes(self) -> list[Axis]:
        """Of the objectives."""
        return [gauge.axis for gauge in self.gauges]

    def _cheaper(self, batches: int) -> tuple[Gauge, ...]:
        """The gauges of a rung: qualities look at the first batches only, the rest is as it is."""
        val = self.context.val
        if val is None or not any(isinstance(gauge, Quality) for gauge in self.gauges):
            return ()
        part = replace(self.context, val=part_of(val, batches * self.context.batch_size, self.context.seed))
        return tuple(gauge.within(part) if isinstance(gauge, Quality) else gauge for gauge in self.gauges)

    def measure(self, config: Config, bars: Sequence[Sequence[Row]] = ()) -> Outcome:
        """One trial. Failures of objectives end up in the outcome, they are not raised.

        Args:
            config: which sub-network.
            bars: for each rung what earlier trials cost there.
        """
        candidate = Candidate(self.context, config)
        stood: list[dict[str, float]] = []
        try:
            for gauges, earlier in zip(self.rungs, bars, strict=False):
                stood.append({gauge.axis.key: self._reading(gauge, candidate).value for gauge in gauges})
                if not self._promising(stood[-1], earlier):
                    return Outcome(config, STOPPED, stood[-1], rungs=tuple(stood))
            readings = {gauge.axis.key: self._reading(gauge, candidate) for gauge in self.gauges}
        except _Failed as failed:
            return Outcome(config, FAILED, rungs=tuple(stood), problem=failed.problem, trace=failed.trace)
        spread = {key: reading.spread for key, reading in readings.items() if reading.spread is not None}
        return Outcome(config, FINISHED, {key: r.value for key, r in readings.items()}, spread, tuple(stood))

    def _promising(self, values: dict[str, float], earlier: Sequence[Row]) -> bool:
        rows = np.asarray([*earlier, [axis.cost(values[axis.key]) for axis in self.axes]])
        rank = ranks(rows)
        return int((rank < rank[-1]).sum()) < max(1, round(self.keep * len(rows)))

    def _reading(self, gauge: Gauge, candidate: Candidate) -> Reading:
        about = self.about(gauge, candidate.config.to_json())
        known = self.base.get(about)
        if known is None or (self.again and "failed" in known):
            known = self._fresh(gauge, candidate)
            self.base.put(about, known)
        if "failed" in known:
            raise _Failed(known["failed"], known.get("trace", ""))
        return Reading(known["value"], known["spread"])

    def _fresh(self, gauge: Gauge, candidate: Candidate) -> dict[str, Any]:
        try:
            reading = checked(gauge.read(candidate), gauge.axis, candidate.config)
        except PliantError as error:
            problem = str(error)
            return {"failed": problem if gauge.axis.key in problem else f"objective {gauge.axis.key}: {problem}"}
        except Exception as error:  # whatever a user's objective or a device that is gone may raise
            told = (str(error).splitlines() or [""])[0]
            where = f"objective {gauge.axis.key} raised for {candidate.config.to_json()}"
            return {"failed": f"{where}: {type(error).__name__}: {told}", "trace": traceback.format_exc()}
        return {"value": reading.value, "spread": reading.spread}

    def about(self, gauge: Gauge, config: Any) -> dict[str, Any]:
        """What a figure depends on."""
        return {
            "network": self.context.network_digest,
            "config": config,
            "objective": gauge.axis.key,
            "of": gauge.depends(),
        }

    def known(self, config: Config) -> list[tuple[dict[str, Any], Any]]:
        """Everything that is kept about a config, to take along to where the file is not."""
        every = [gauge for gauges in (*self.rungs, self.gauges) for gauge in gauges]
        abouts = {digest(about): about for about in (self.about(gauge, config.to_json()) for gauge in every)}
        return [(about, value) for about in abouts.values() if (value := self.base.get(about)) is not None]

    def together(self, gauge: Latency, configs: Sequence[Config]) -> dict[Config, tuple[Reading, bool]]:
        """Latencies read side by side, and whether a neighbour in speed could not be told apart."""
        configs = sorted(configs, key=Config.to_json)
        about = self.about(gauge, [config.to_json() for config in configs])
        known = self.base.get(about)
        if known is None:
            readings, near = gauge.compare([Candidate(self.context, config) for config in configs])
            tied = {config for pair in near for config in pair}
            known = [[readings[config].value, readings[config].spread, config in tied] for config in configs]
            self.base.put(about, known)
        return {c: (Reading(value, spread), tie) for c, (value, spread, tie) in zip(configs, known, strict=True)}


class _Failed(Exception):
    """A reading that could not be had."""

    def __init__(self, problem: str, trace: str) -> None:
        super().__init__(problem)
        self.problem, self.trace = problem, trace
