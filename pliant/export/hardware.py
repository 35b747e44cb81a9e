"""Hardware: where latency is measured, or predicted from what was measured there."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pliant.core import PliantError
from pliant.export.latency_model import LatencyModel, fit_latency, refuse_noise
from pliant.export.network_text import network_text, simplified
from pliant.export.onnx_model import OnnxModel
from pliant.export.probes import USUAL, Family, ProbeSettings, probes_of
from pliant.export.timing import Comparison, Latency, compare
from pliant.export.to_onnx import to_onnx
from pliant_runtime.errors import ArtifactError
from pliant_runtime.machine import machine as machine
from pliant_runtime.probes import Description, measure, read_description

Candidate = nn.Module | OnnxModel | Callable[[], Any]


@dataclass(frozen=True)
class Hardware:
    """A processor with a fixed number of threads. Make it with `hardware("cpu", threads=1)`.

    Args:
        name: "cpu".
        threads: threads a network may use.
        machine: processor, cores, operating system and versions, in one line.
    """

    name: str
    threads: int
    machine: str

    def latency(
        self, candidate: Candidate, inputs: Any = None, *, batch: int = 1, rounds: int = 40, seconds: float = 0.3
    ) -> Latency:
        """Wall time of one call through onnxruntime (see `Latency` for what each figure means).

        Args:
            candidate: a module (exported first), an `OnnxModel`, or a function without arguments (called as it is).
            inputs: example input; needed for a module, by default the one it was exported with for an `OnnxModel`.
            batch: rows per call.
            rounds: most rounds of calls.
            seconds: time after which no further round starts.

        Raises:
            ValueError: a module without `inputs`, a batch below 1.
            PliantError: the module cannot be exported.
        """
        return self.compare({"it": candidate}, inputs, batch=batch, rounds=rounds, seconds=seconds)["it"]

    def compare(
        self,
        candidates: Mapping[str, Candidate],
        inputs: Any = None,
        *,
        batch: int = 1,
        rounds: int = 40,
        seconds: float | None = None,
    ) -> Comparison:
        """Time several candidates side by side; arguments as in `latency`, `seconds` (0.3 per candidate) in all.

        The result ranks them, and refuses to where the difference is within the noise it measured.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        calls = {name: self._prepare(candidate, inputs, batch) for name, candidate in candidates.items()}
        budget = 0.3 * len(candidates) if seconds is None else seconds
        return compare(calls, threads=self.threads, rounds=rounds, seconds=budget)

    def describe(
        self,
        net: Family,
        *,
        out: str | Path | None = None,
        seconds: float = 40.0,
        settings: ProbeSettings = USUAL,
        progress: bool | None = None,
    ) -> "DescribedHardware":
        """Measure operators and small sub-networks of a family once, to predict the latency of all others.

        Args:
            net: an elastic network; not changed.
            out: where to write the description (JSON); `pliant.hardware(out)` reads it.
            seconds: about how long to measure; making the probes takes about as long again.
            settings: how many probes.
            progress: whether to tell on stderr what is measured; None does when it is a terminal.

        Returns:
            Hardware that predicts; `model` states its error on sub-networks that were measured, not learned from.

        Raises:
            PliantError: noise larger than the differences between sub-networks, or one that cannot be exported.
            ValueError: seconds not above 0, or a space with too few sub-networks.
        """
        if not seconds > 0:
            raise ValueError(f"seconds must be above 0, got {seconds}")
        show = sys.stderr.isatty() if progress is None else progress
        probes = probes_of(net, settings)
        found = measure(
            probes,
            threads=self.threads,
            seconds=seconds,
            told=lambda line: print(line, file=sys.stderr, flush=True) if show else None,
        )
        refuse_noise(found)
        if out is not None:
            found.save(out)
        return DescribedHardware(self.name, self.threads, found.machine, found, fit_latency(found))

    def _prepare(self, candidate: Candidate, inputs: Any, batch: int) -> Callable[[], Any]:
        if isinstance(candidate, nn.Module):
            if inputs is None:
                raise ValueError("a module needs example inputs to be measured: pass inputs=")
            # Only its speed is asked for here; whoever ships the network exports it with the check.
            candidate = to_onnx(candidate, inputs, check=False)
        if not isinstance(candidate, OnnxModel):
            return candidate
        session = candidate.session(threads=self.threads)
        feeds = candidate.feeds(candidate.form.rows(batch))
        names = list(candidate.outputs)
        return lambda: session.run(names, feeds)

    def to_dict(self) -> dict[str, str | int]:
        """Plain JSON data, for the record."""
        return {"name": self.name, "threads": self.threads, "machine": self.machine}


@dataclass(frozen=True)
class DescribedHardware(Hardware):
    """A machine known by its description only: latencies are predicted, within what was measured there.

    Args:
        name: "cpu", or the file it was read from.
        threads: that the description was measured with.
        machine: processor, cores, operating system and versions, in one line.
        description: what was measured.
        model: what predicts; its `median_relative_error` and `rank_correlation` are on sub-networks it did not learn
            from.
    """

    description: Description = field(repr=False)
    model: LatencyModel = field(repr=False)

    def compare(
        self,
        candidates: Mapping[str, Candidate],
        inputs: Any = None,
        *,
        batch: int = 1,
        rounds: int = 40,
        seconds: float | None = None,
    ) -> Comparison:
        """Predict several candidates; nothing runs. The noise is the median error that the description states.

        Args:
            candidates: modules or `OnnxModel`s.
            inputs: as in `Hardware.latency`.
            batch: 1, which the description is about.
            rounds, seconds: not used.

        Raises:
            ValueError: another batch, or a module without `inputs`.
            TypeError: a function, of which nothing is known.
            PliantError: a candidate lies outside what was measured.
        """
        if batch != 1:
            raise ValueError(f"the description is about single rows, got a batch of {batch}")
        error = self.model.median_relative_error
        times = {name: self._predicted(candidate, inputs) for name, candidate in candidates.items()}
        latencies = {
            name: Latency(value, 2 * error * value, value, value, 0, 0, self.threads) for name, value in times.items()
        }
        noise = max(self.description.noise, error)
        return Comparison(latencies, noise, {name: (value,) * 3 for name, value in times.items()})

    def _predicted(self, candidate: Candidate, inputs: Any) -> float:
        if isinstance(candidate, nn.Module):
            if inputs is None:
                raise ValueError("a module needs example inputs to be predicted: pass inputs=")
            candidate = to_onnx(candidate, inputs, check=False)
        if not isinstance(candidate, OnnxModel):
            raise TypeError(f"described hardware predicts modules and OnnxModels, got {type(candidate).__name__}")
        return self.model.milliseconds(network_text(simplified(candidate.proto)))

    def describe(
        self,
        net: Family,
        *,
        out: str | Path | None = None,
        seconds: float = 40.0,
        settings: ProbeSettings = USUAL,
        progress: bool | None = None,
    ) -> "DescribedHardware":
        """Raises `PliantError`: another machine cannot be measured from here."""
        raise PliantError(
            "a described machine cannot be measured from here",
            where=self.name,
            fix="run `pliant-runtime measure PROBES --out FILE` on it",
        )

    def to_dict(self) -> dict[str, str | int]:
        """Plain JSON data, for the record; two descriptions of one machine differ by their hash."""
        return {**super().to_dict(), "description": self.description.digest()}


def hardware(name: str | Path = "cpu", threads: int | None = None) -> Hardware:
    """The processor of this machine, or another machine by its description.

    Args:
        name: "cpu", or the path of a description (`*.json`) that `pliant-runtime measure` or `Hardware.describe` wrote.
        threads: threads a network may use, from 1 to the number of logical cores; None for 1, or for those that the
            description was measured with.

    Raises:
        ValueError: another name, or a number of threads the machine does not have or was not measured with.
        PliantError: a description that is damaged, or too noisy to tell networks apart.
    """
    if str(name).endswith(".json"):
        return _described(Path(name), threads)
    if name != "cpu":
        raise ValueError(f"hardware {str(name)!r} is not known; choose cpu, or a description (a .json file)")
    threads, cores = 1 if threads is None else threads, os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ValueError(f"threads must be from 1 to {cores} (logical cores of this machine), got {threads}")
    return Hardware("cpu", threads, machine())


def _described(path: Path, threads: int | None) -> DescribedHardware:
    try:
        found = read_description(path)
    except ArtifactError as error:
        raise PliantError(error.problem, where=error.file, fix="measure again: pliant-runtime measure") from error
    if threads not in (None, found.threads):
        raise ValueError(f"{path.name} was measured with {found.threads} threads, got threads={threads}")
    return DescribedHardware(path.name, found.threads, found.machine, found, fit_latency(found))
