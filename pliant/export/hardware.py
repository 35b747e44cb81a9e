"""Hardware: where latency is measured, never guessed."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from torch import nn

from pliant.export.onnx_model import OnnxModel
from pliant.export.timing import Comparison, Latency, compare
from pliant.export.to_onnx import to_onnx

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


def hardware(name: str = "cpu", threads: int = 1) -> Hardware:
    """The processor of this machine.

    Args:
        name: "cpu", the only one measured here.
        threads: threads a network may use, from 1 to the number of logical cores.

    Raises:
        ValueError: another name, or a number of threads the machine does not have.
    """
    if name != "cpu":
        raise ValueError(f"hardware {name!r} is not known; choose cpu")
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ValueError(f"threads must be from 1 to {cores} (logical cores of this machine), got {threads}")
    return Hardware(name, threads, machine())


def machine() -> str:
    """Processor, logical cores, operating system and versions of this machine, in one line."""
    system = f"{platform.system()} {platform.machine()}"
    versions = f"Python {platform.python_version()}, onnxruntime {ort.__version__}"
    return f"{_processor()}, {os.cpu_count()} logical cores, {system}, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
