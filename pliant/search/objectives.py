"""Objectives: what a sub-network is judged by."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from types import CodeType
from typing import Any, Protocol

from torch import nn

from pliant.core import Config, PliantError, Space, seeded
from pliant.data import Split
from pliant.export import Hardware
from pliant.learn import evaluate, metrics
from pliant.search.front import Axis
from pliant.search.measurements import digest, state_digest, tensors_digest


class Costed(Protocol):
    """What `Searchable.cost` returns."""

    @property
    def flops(self) -> int:
        """Floating point operations."""
        ...

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes they take."""
        ...


class Searchable(Protocol):
    """What a network must offer to be searched; `pliant.elastic(...)` does."""

    @property
    def space(self) -> Space:
        """What can be chosen."""
        ...

    @property
    def example(self) -> Any:
        """An example input."""
        ...

    def extract(self, config: Config, *, calibrate: Any = None) -> nn.Module:
        """One sub-network as a module, BatchNorm re-estimated from batches of inputs."""
        ...

    def cost(self, config: Config) -> Costed:
        """Its cost per sample."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """All weights."""
        ...


@dataclass(frozen=True)
class Context:
    """What objectives may read. The test split is not among it.

    Args:
        net: the network that is searched; never changed.
        train: for calibration; None without data.
        val: for quality; None without data.
        metric: the task's metric, as `pliant.learn.evaluate` takes it; None without data.
        hardware: where latency is measured.
        batch_size: samples per forward pass.
        calibration_batches: how many training batches re-estimate BatchNorm.
        output: which part of the network's output is judged.
        seed: of the choice of training batches.
    """

    net: Searchable
    train: Split | None = None
    val: Split | None = None
    metric: Any = None
    hardware: Hardware | None = None
    batch_size: int = 256
    calibration_batches: int = 16
    output: str | None = None
    seed: int = 0

    @cached_property
    def calibration(self) -> list[Any] | None:
        """The same training batches for every sub-network: inputs only."""
        if self.train is None:
            return None
        batches = self.train.batches(self.batch_size, generator=seeded(self.seed, "calibration"))
        return [inputs for (inputs, _), _ in zip(batches, range(self.calibration_batches), strict=False)]

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """What tells this network from another one, apart from the values of its weights."""
        shapes = {name: list(tensor.shape) for name, tensor in self.net.state_dict().items()}
        return {"name": getattr(self.net, "name", type(self.net).__name__), "tensors": shapes}

    @cached_property
    def network_digest(self) -> str:
        """Fingerprint of the network with its weights and its space."""
        return digest([self.architecture, self.net.space.to_dict(), state_digest(self.net.state_dict())])

    @cached_property
    def data_digest(self) -> str:
        """Fingerprint of every sample that objectives read."""
        val = None if self.val is None else (self.val.inputs, self.val.targets)
        return tensors_digest([self.calibration or [], val or []])


class Candidate:
    """One sub-network that is built when an objective asks for it.

    Args:
        context: the network and the data.
        config: which sub-network.
    """

    def __init__(self, context: Context, config: Config) -> None:
        self.context, self.config = context, config

    @cached_property
    def module(self) -> nn.Module:
        """The calibrated module, in evaluation mode."""
        module = self.context.net.extract(self.config, calibrate=self.context.calibration)
        return module.eval()


@dataclass(frozen=True)
class Reading:
    """A figure, and the interquartile range of what was read repeatedly."""

    value: float
    spread: float | None = None


class Gauge(ABC):
    """Something that reads one objective off a candidate.

    Args:
        axis: its name and direction.
        context: what it reads from.
    """

    def __init__(self, axis: Axis, context: Context) -> None:
        self.axis, self.context = axis, context

    @abstractmethod
    def read(self, candidate: Candidate) -> Reading:
        """Measure."""

    @abstractmethod
    def depends(self) -> dict[str, Any]:
        """Plain JSON data naming what a reading depends on, apart from the network and the config."""


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


class _Own(Gauge):
    def __init__(self, objective: Objective, context: Context) -> None:
        super().__init__(Axis(objective.name, objective.maximise, objective.unit), context)
        self._objective = objective

    def read(self, candidate: Candidate) -> Reading:
        return Reading(float(self._objective.fn(candidate.module, candidate.config)))

    def depends(self) -> dict[str, Any]:
        code = _identity(self._objective.fn)
        return {"code": code, "version": self._objective.version, "data": self.context.data_digest}


class _Quality(Gauge):
    """A metric of the calibrated sub-network on the validation split."""

    def __init__(self, name: str, metric: Any, context: Context) -> None:
        self._measure = metrics.measure(metric)
        axis = Axis(self._measure.name, self._measure.higher_is_better, "", name)
        super().__init__(axis, context)

    def read(self, candidate: Candidate) -> Reading:
        context = self.context
        if context.val is None:
            raise ValueError(f"objective {self.axis.name!r} needs data: pass data=")
        value = evaluate(
            candidate.module, context.val, metric=self._measure, batch_size=context.batch_size, output=context.output
        )
        return Reading(value)

    def depends(self) -> dict[str, Any]:
        return {"data": self.context.data_digest, "output": self.context.output}


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


def choices() -> list[str]:
    """The objectives that have a name."""
    return list(dict.fromkeys(["accuracy", "latency", *_COUNTS, *metrics.__all__]))


def gauge(objective: "str | Objective | Callable[[nn.Module, Config], float]", context: Context) -> Gauge:
    """What reads an objective.

    Args:
        objective: `accuracy` (the metric of the task, whatever it is called), `latency`, `flops`, `parameters`,
            `bytes`, a metric of `pliant.learn` by name, an `Objective`, or a function of module and config whose
            result is to be minimised.
        context: what it may read.

    Raises:
        ValueError: an unknown name (the message lists the choices), or data or hardware that it needs are missing.
        TypeError: something else.
    """
    if isinstance(objective, Objective):
        return _Own(objective, context)
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
    if name in _COUNTS:
        return _Cost(Axis(name, False, _COUNTS[name]), context)
    if context.val is None:
        raise ValueError(f"objective {objective!r} needs data: pass data=")
    return _Quality(name, context.metric if name == "accuracy" else name, context)


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


def checked(reading: Reading, axis: Axis, config: Config) -> Reading:
    """The reading, if it is finite. Raises `PliantError` otherwise."""
    if not math.isfinite(reading.value):
        raise PliantError(f"objective {axis.key} is {reading.value} for {config.to_json()}, it must be finite")
    return reading


def _identity(fn: Any) -> list[Any]:
    """What tells one function from another across processes: names, code and the plain values it is bound to."""
    if isinstance(fn, partial):
        return [_plain(fn.args), _plain(fn.keywords), _identity(fn.func)]
    inner = getattr(fn, "__func__", fn)  # a bound method
    if not hasattr(inner, "__code__"):  # an object that can be called, or something written in C
        inner = type(inner).__call__
        if not hasattr(inner, "__code__"):
            return [type(fn).__module__, getattr(fn, "__qualname__", type(fn).__qualname__)]
    cells = [_plain(_content(cell)) for cell in inner.__closure__ or ()]
    defaults = [_plain(inner.__defaults__), _plain(inner.__kwdefaults__)]
    return [inner.__module__, inner.__qualname__, _code(inner.__code__), cells, defaults]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def _code(code: CodeType) -> list[Any]:
    inner = [_code(value) if isinstance(value, CodeType) else _plain(value) for value in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def _plain(value: Any) -> Any:
    """Numbers, strings and containers of them as text; anything else by its type, since `repr` may hold an address."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    return type(value).__qualname__
