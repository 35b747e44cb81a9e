from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.core import Config, Knob, Space
from pliant.data import Dataset, Split
from pliant.export import Comparison, Latency


@dataclass(frozen=True)
class Cost:
    flops: int
    parameters: int
    bytes: int


class Narrow(nn.Module):
    """The smallest network with an elastic width that BatchNorm statistics depend on."""

    def __init__(self, weight: Tensor, head: Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.norm = nn.BatchNorm1d(weight.shape[0])
        self.last = nn.Linear(head.shape[1], head.shape[0], bias=False)
        with torch.no_grad():
            self.first.weight.copy_(weight)
            self.last.weight.copy_(head)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return result


@dataclass
class Net:
    """Offers what a search needs, and counts what was asked of it."""

    space: Space = field(
        default_factory=lambda: Space([Knob("width:first", (2, 4, 8)), Knob("depth:x", (False, True))])
    )
    seed: int = 0
    extracted: list[Config] = field(default_factory=list)
    calibrations: list[Any] = field(default_factory=list)
    name: str = "Narrow"

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.first = torch.randn(8, 4, generator=generator)
        self.last = torch.randn(3, 8, generator=generator)
        self.example = torch.randn(2, 4, generator=generator)

    def extract(self, config: Config, *, calibrate: Iterable[Tensor] | None = None) -> nn.Module:
        self.extracted.append(config)
        self.calibrations.append(calibrate)
        width = int(config.get("width:first", 8))
        module = Narrow(self.first[:width], self.last[:, :width])
        if calibrate is not None:
            module.norm.momentum = None
            with torch.no_grad():
                for inputs in calibrate:
                    module(inputs)
        return module

    def cost(self, config: Config) -> Cost:
        width = int(config.get("width:first", 8))
        return Cost(14 * width, 7 * width, 28 * width)

    def state_dict(self) -> Mapping[str, Any]:
        return {"first": self.first, "last": self.last}


@dataclass
class Clock:
    """Hardware on which a network takes its number of parameters in milliseconds, and that counts its work."""

    noise: float = 0.01
    drift: float = 0.0
    threads: int = 1
    asked: list[list[str]] = field(default_factory=list)

    def compare(self, candidates: Mapping[str, nn.Module], inputs: Any, *, batch: int) -> Comparison:
        assert batch == 1
        self.asked.append(list(candidates))
        times = {name: float(sum(p.numel() for p in module.parameters())) for name, module in candidates.items()}
        times = {name: value * (1 + self.drift * len(self.asked)) for name, value in times.items()}
        latencies = {name: Latency(value, 0.5, value, value, 11, 3, 1) for name, value in times.items()}
        return Comparison(latencies, self.noise, {name: (value,) * 11 for name, value in times.items()})

    def to_dict(self) -> dict[str, Any]:
        return {"name": "clock", "threads": self.threads}


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def clock() -> Any:
    return Clock()


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(90, 4, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    train, val, test = (Split(inputs[i : i + 30], targets[i : i + 30]) for i in (0, 30, 60))
    return Dataset("toy", train, val, test, "classify", ("a", "b", "c"))


def wide_space() -> Space:
    """4096 sub-networks: five widths, two depths."""
    widths = [Knob(f"width:l{i}", (8, 16, 24, 32)) for i in range(5)]
    return Space([*widths, Knob("depth:b0", (False, True)), Knob("depth:b1", (False, True))])


def wide_values(config: Mapping[str, int]) -> tuple[float, float]:
    """A saturating quality and a latency of products of widths, as networks have them; known for every config."""
    w = np.asarray([float(config[f"width:l{i}"]) for i in range(5)])
    one, two = config["depth:b0"], config["depth:b1"]
    latency = 0.2 + (9 * w[0] + w[0] * w[1] + w[2] * w[3]) / 1000
    latency += (w[1] * w[2] * (1 if one else 0.3) + w[3] * w[4] * (1 if two else 0.4)) / 1000
    capacity = np.log(w / 8) @ [0.5, 1.2, 0.3, 0.9, 1.5] + 0.6 * one * np.log(w[1] / 4) + 0.5 * two
    quality = 0.95 - 0.5 * np.exp(-0.45 * capacity) - 0.02 * abs(np.log(w[1] / w[2]))
    return float(quality), float(latency)


@pytest.fixture
def wide() -> tuple[Space, Callable[[Mapping[str, int]], Sequence[float]]]:
    return wide_space(), wide_values
