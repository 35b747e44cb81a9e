"""Objectives of the machine that are computed: peak memory and a model of energy."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pliant.core import call, map_tensors, tensors_of
from pliant.search.context import Candidate, Context, Gauge, Reading
from pliant.search.front import Axis
from pliant.search.measurements import tensors_digest


class Memory(Gauge):
    """Peak bytes while a sub-network runs on one example: its tensors and everything alive at once.

    Counted on eager PyTorch, operator by operator, so that it is exact and the same everywhere; a runtime that plans
    its memory needs less, operators that need work space need more.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(Axis("memory_bytes", False, "B", "memory"), context)

    def read(self, candidate: Candidate) -> Reading:
        """Run it once, counting."""
        example = _first(self.context.net.example)
        return Reading(float(peak_bytes(candidate.module, example)))

    def depends(self) -> dict[str, Any]:
        """The example."""
        return {"example": tensors_digest(self.context.net.example), "batch": 1}


def peak_bytes(module: nn.Module, inputs: Any) -> int:
    """Most bytes that are alive at once while `module` runs on `inputs`: states, inputs and intermediate results.

    Args:
        module: in evaluation mode.
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
    """
    live = _Live()
    for tensor in [*module.parameters(), *module.buffers(), *tensors_of(inputs)]:
        live.add(tensor)
    with torch.no_grad(), live:
        call(module, inputs)
    return live.peak


class _Live(TorchFunctionMode):
    """Counts the memory of tensors from their first sight until the last one that shares it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._users: Counter[int] = Counter()
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        if id(tensor) in self._known:
            return
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._known.add(id(tensor))
        if not self._users[place]:
            self._sizes[place] = size
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        self._users[place] += 1
        weakref.finalize(tensor, self._gone, id(tensor), place)

    def _gone(self, tensor: int, place: int) -> None:
        self._known.discard(tensor)
        self._users[place] -= 1
        if not self._users[place]:
            self.bytes -= self._sizes.pop(place)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result) if isinstance(result, Tensor | tuple | list | dict) else ():
            self.add(tensor)
        return result


def _first(example: Any) -> Any:
    """The first sample of every tensor that has one axis per sample."""
    return map_tensors(lambda tensor: tensor[:1] if tensor.dim() else tensor, example)


@dataclass(frozen=True)
class Energy:
    """A model of energy: so much for every operation and so much for every byte of parameters that is fetched.

    Horowitz 2014, "Computing's Energy Problem (and what we can do about it)"
    <https://doi.org/10.1109/ISSCC.2014.6757323>, table 1 (45 nm, float32): a multiplication takes 3.7 pJ, an addition
    0.9 pJ, 4 bytes from DRAM 640 pJ. A model, not a measurement: give the constants of your own machine.

    Args:
        pj_per_flop: picojoules for one floating point operation.
        pj_per_byte: picojoules for one byte of parameters, each fetched once per sample.

    Raises:
        ValueError: a negative constant, or none above 0.
    """

    pj_per_flop: float = 2.3
    pj_per_byte: float = 160.0

    def __post_init__(self) -> None:
        if min(self.pj_per_flop, self.pj_per_byte) < 0 or max(self.pj_per_flop, self.pj_per_byte) <= 0:
            raise ValueError(f"energies must not be negative, nor all 0, got {self.pj_per_flop} and {self.pj_per_byte}")

    def gauge(self, context: Context) -> Gauge:
        """What reads it, in microjoules per sample."""
        return _EnergyGauge(self, context)


class _EnergyGauge(Gauge):
    def __init__(self, model: Energy, context: Context) -> None:
        super().__init__(Axis("energy_uj", False, "µJ", "energy"), context)
        self._model = model

    def read(self, candidate: Candidate) -> Reading:
        cost = self.context.net.cost(candidate.config)
        return Reading((cost.flops * self._model.pj_per_flop + cost.bytes * self._model.pj_per_byte) * 1e-6)

    def depends(self) -> dict[str, Any]:
        return asdict(self._model)
