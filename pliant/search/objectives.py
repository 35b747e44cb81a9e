"""Objectives: what a sub-network is judged by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from pliant.core import Config
from pliant.learn import metrics
from pliant.search.context import Candidate as Candidate
from pliant.search.context import Context as Context
from pliant.search.context import Gauge as Gauge
from pliant.search.context import Reading as Reading
from pliant.search.context import Searchable as Searchable
from pliant.search.front import Axis
from pliant.search.identity import identity
from pliant.search.measurements import tensors_digest
from pliant.search.physical import Energy, Memory
from pliant.search.qualities import Quality, Robustness


@dataclass(frozen=True)
class Objective:
    """An objective of your own.

    Args:
        name: its name in values and tables.
        fn: calibrated module in evaluation mode and its config -> a finite number.
        maximise: whether larger is better.
        unit: for tables.
        version: change it when `fn` computes something else because of data it reads from elsewhere: measurements are
            kept by name, version and the code of `fn` (with the plain values it closes over).

    Raises:
        ValueError: an empty name.
        TypeError: `fn` cannot be called.
    """

    name: str
    fn: Callable[[nn.Module, Config], float]
    maximise: bool = False
    unit: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("an objective needs a name, got ''")
        if not callable(self.fn):
            raise TypeError(f"objective {self.name!r} needs a function of module and config, got {self.fn!r}")


Judged = str | Objective | Energy | Robustness | Callable[[nn.Module, Config], float]
"""Whatever `search` takes as an objective; see `gauge`."""


class _Own(Gauge):
    def __init__(self, objective: Objective, context: Context) -> None:
        super().__init__(Axis(objective.name, objective.maximise, objective.unit), context)
        self._objective = objective

    def read(self, candidate: Candidate) -> Reading:
        return Reading(float(self._objective.fn(candidate.module, candidate.config)))

    def depends(self) -> dict[str, Any]:
        code = identity(self._objective.fn)
        return {"code": code, "version": self._objective.version, "data": self.context.data_digest}


class _Cost(Gauge):
    """A count of the sub-network, per sample."""

    def read(self, candidate: Candidate) -> Reading:
        return Reading(float(getattr(self.context.net.cost(candidate.config), self.axis.key)))

    def depends(self) -> dict[str, Any]:
        return {}


class Latency(Gauge):
    """Milliseconds per sample at batch 1 through onnxruntime."""

    def __init__(self, context: Context) -> None:
        super().__init__(Axis("latency_ms", False, "ms", "latency"), context)

    def read(self, candidate: Candidate) -> Reading:
        """One sub-network alone."""
        return self.compare([candidate])[0][candidate.config]

    def compare(self, candidates: Sequence[Candidate]) -> tuple[dict[Config, Reading], list[tuple[Config, Config]]]:
        """Time candidates side by side.

        Returns:
            the readings, and the pairs of neighbours in speed that differ by less than the noise.
        """
        hardware = self.context.hardware
        if hardware is None:
            raise ValueError("latency needs hardware: pass hardware=pliant.hardware('cpu')")
        named = {candidate.config.to_json(): candidate for candidate in candidates}
        modules = {name: candidate.module for name, candidate in named.items()}
        result = hardware.compare(modules, self.context.net.example, batch=1)
        readings = {c.config: Reading(result[n].median_ms, result[n].iqr_ms) for n, c in named.items()}
        order = sorted(named, key=lambda name: result[name].median_ms)
        near = [(a, b) for a, b in pairwise(order) if result.faster(a, b) is None]
        return readings, [(named[a].config, named[b].config) for a, b in near]

    def depends(self) -> dict[str, Any]:
        """The machine and the shape of the example."""
        hardware = self.context.hardware
        shapes = tensors_digest(self.context.net.example)
        return {"hardware": None if hardware is None else hardware.to_dict(), "batch": 1, "example": shapes}


_COUNTS = {"flops": "", "parameters": "", "bytes": "B"}
_MODELS: dict[str, type[Energy] | type[Robustness]] = {"energy": Energy, "robustness": Robustness}


def choices() -> list[str]:
    """The objectives that have a name."""
    return list(dict.fromkeys(["accuracy", "latency", *_COUNTS, "memory", *_MODELS, *metrics.__all__]))


def gauge(objective: Judged, context: Context) -> Gauge:
    """What reads an objective.

    Args:
        objective: `accuracy` (the metric of the task, whatever it is called), `latency`, `flops`, `parameters`,
            `bytes` (of parameters), `memory` (peak while it runs), `energy` (a model, see `Energy`), `robustness` (see
            `Robustness`), a metric of `pliant.learn` by name, an `Objective`, an `Energy` or a `Robustness` of your
            own, or a function of module and config whose result is to be minimised.
        context: what it may read.

    Raises:
        ValueError: an unknown name (the message lists the choices), or data or hardware that it needs are missing.
        TypeError: something else.
    """
    if isinstance(objective, Objective):
        return _Own(objective, context)
    if isinstance(objective, Energy | Robustness):
        return objective.gauge(context)
    if callable(objective):
        name = getattr(objective, "__name__", type(objective).__name__)
        return _Own(Objective(name, objective), context)
    if not isinstance(objective, str):
        raise TypeError(f"an objective is a name, an Objective or a function, got {objective!r}")
    name = objective.lower().replace("-", "_").removesuffix("_ms")
    if name not in choices():
        raise ValueError(f"no objective called {objective!r}; choose among {', '.join(choices())}, or an Objective")
    if name == "latency":
        return Latency(context)
    if name == "memory":
        return Memory(context)
    if name in _MODELS:
        return _MODELS[name]().gauge(context)
    if name in _COUNTS:
        return _Cost(Axis(name, False, _COUNTS[name]), context)
    return Quality(name, context.metric if name == "accuracy" else name, context)


def gauges(objectives: Sequence[Any], context: Context) -> list[Gauge]:
    """One gauge per objective, in order.

    Raises:
        ValueError: none given, two with one name, or as `gauge`.
        TypeError: a single string, or as `gauge`.
    """
    if isinstance(objectives, str):
        raise TypeError(f"objectives are a sequence of names, got the string {objectives!r}; write ({objectives!r},)")
    found = [gauge(objective, context) for objective in objectives]
    keys = [one.axis.key for one in found]
    if not keys or len(set(keys)) != len(keys):
        raise ValueError(f"give at least one objective, and each once; got {keys}")
    return found
