"""What objectives read from: the network that is searched, the data, one sub-network."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from pliant.core import Config, PliantError, Space, seeded
from pliant.data import Split
from pliant.export import Hardware
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


def checked(reading: Reading, axis: Axis, config: Config) -> Reading:
    """The reading, if it is finite. Raises `PliantError` otherwise."""
    if not math.isfinite(reading.value):
        raise PliantError(f"objective {axis.key} is {reading.value} for {config.to_json()}, it must be finite")
    return reading


def part_of(split: Split, limit: int | None, seed: int) -> Split:
    """A random part of a split of at most `limit` samples, the same every time; None for all of it."""
    if limit is None or limit >= len(split):
        return split
    # not simply the first ones: a split may be sorted by class
    return split.select(torch.randperm(len(split), generator=seeded(seed, "val"))[:limit])
