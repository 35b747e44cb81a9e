"""One loaded artifact as a server sees it: what goes in, what comes out, and how long it takes."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.family import Family, load
from pliant_runtime.preprocess import arrays_of
from pliant_runtime.serving.table import Table

Array = NDArray[Any]
DATATYPES: Mapping[str, str] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Port:
    """An input or output: its name, numpy dtype, and the shape of one row; -1 where a side is free."""

    name: str
    dtype: str
    row: tuple[int, ...]

    @property
    def datatype(self) -> str:
        """The dtype as the inference protocol writes it."""
        return DATATYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 where its size is not fixed."""
        return 0 if -1 in self.row else int(np.prod(self.row, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def metadata(self) -> dict[str, Any]:
        """As the protocol describes it."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.row]}


class Model:
    """A family that is ready to serve. `run` may be called from any thread.

    Args:
        family: the loaded artifact.
        table: its times on this machine.

    Raises:
        ArtifactError: inputs without a batch axis.
    """

    def __init__(self, family: Family, table: Table) -> None:
        self.family, self.table = family, table
        self.name, self.version = family.name, family.digest[:12]
        self.inputs, self.outputs = inputs_of(family), outputs_of(family)

    @property
    def quality(self) -> str | None:
        """What the figure of merit is called; None where the artifact has none."""
        quality = self.family.program.quality
        return None if quality is None else quality.name

    def run(self, subnet: int, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Outputs of several requests, computed in one batch.

        Args:
            subnet: which sub-network.
            requests: per request its input arrays, rows along axis 0.
        """
        if len(requests) == 1:
            return [_outputs(self.family, subnet, list(requests[0]), len(self.outputs))]
        joined = [np.concatenate(column) for column in zip(*requests, strict=True)]
        found = _outputs(self.family, subnet, joined, len(self.outputs))
        ends = np.cumsum([len(request[0]) for request in requests])[:-1]
        return [list(parts) for parts in zip(*(np.split(array, ends) for array in found), strict=True)]


def inputs_of(family: Family) -> tuple[Port, ...]:
    """What a request carries: raw samples where the artifact knows how to prepare them."""
    signature = family.signature
    raw = signature.preprocessing
    if raw is not None:
        return (Port(signature.inputs[0].name, raw.dtype, raw.shape),)
    for value in signature.inputs:
        if value.shape[:1] != ("N",):
            problem = f"input {value.name!r} has no batch axis; compile it from a module that takes batches to serve it"
            raise ArtifactError(str(family.path), problem)
    return tuple(Port(v.name, v.dtype, _row(v.shape[1:])) for v in signature.inputs)


def outputs_of(family: Family) -> tuple[Port, ...]:
    """What an answer carries."""
    return tuple(Port(v.name, v.dtype, _row(v.shape[1:])) for v in family.signature.outputs)


def _row(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(side if isinstance(side, int) else -1 for side in shape)


def _outputs(family: Family, subnet: int, arrays: list[Array], count: int) -> list[Array]:
    """Output arrays, each with one row per row of input."""
    rows = len(arrays[0])
    found = _computed(family, subnet, arrays)
    if len(found) == count and all(array.shape[:1] == (rows,) for array in found):
        return found
    # A network that decides may answer every row with another structure; then rows are computed one by one.
    single = [_computed(family, subnet, [array[row : row + 1] for array in arrays]) for row in range(rows)]
    return [np.concatenate([np.atleast_1d(array) for array in column]) for column in zip(*single, strict=True)]


def _computed(family: Family, subnet: int, arrays: list[Array]) -> list[Array]:
    signature = family.signature
    call = {"tensor": arrays[0], "tuple": tuple(arrays)}
    given: Any = call.get(signature.call, {v.name: a for v, a in zip(signature.inputs, arrays, strict=False)})
    ready = arrays_of(given, signature, preprocessed=False)
    return family._executor.outputs(family.entries[subnet].start_state, ready)


def samples(family: Family, rows: int, seed: int = 0) -> list[Array]:
    """Rows to measure with: those stored with the artifact where they are what the network takes, else random ones."""
    check = family.entries[0].check
    ports = inputs_of(family)
    if check is not None and family.signature.preprocessing is None:
        stored = [family._weights.tensor(name) for name in check.inputs]
        if all(len(array) for array in stored):
            return [np.resize(array, (rows, *array.shape[1:])) for array in stored]
    draw = np.random.default_rng(seed)
    arrays = []
    for port in ports:
        shape = (rows, *(1 if side == -1 else side for side in port.row))
        kind = np.dtype(port.dtype)
        if kind.kind == "f":
            arrays.append(draw.standard_normal(shape).astype(kind))
        elif port.dtype == "uint8":
            arrays.append(draw.integers(0, 256, shape, dtype=np.uint8))
        else:
            arrays.append(np.zeros(shape, dtype=kind))
    return arrays


def measure(
    family: Family, *, slo_s: float, rounds: int = 7, seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Table:  # fmt: skip
    """The fastest time of every sub-network at every batch size, in random order round by round.

    Larger sizes are left out once a batch takes longer than the promise.

    Args:
        family: a loaded artifact.
        slo_s: the promise.
        rounds: measurements of each.
        seconds: after so many no further round starts, once there are three.
        clock: what time is read from.
    """
    family.prepare()
    largest = max(range(len(family)), key=lambda n: _timed(family, n, samples(family, 1), clock))
    rows = [1]
    for size in SIZES[1:]:
        if _timed(family, largest, samples(family, rows[-1]), clock) > slo_s:
            break
        rows.append(size)
    given = {size: samples(family, size) for size in rows}
    best = {(n, size): float("inf") for n in range(len(family)) for size in rows}
    order, begun = random.Random(0), time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > seconds:
            break
        for n, size in order.sample(list(best), len(best)):
            best[n, size] = min(best[n, size], _timed(family, n, given[size], clock))
    lines = [[best[n, size] for size in rows] for n in range(len(family))]
    found = Table.monotone(rows, lines, quality=qualities(family, [line[0] for line in lines]))
    return Table(found.rows, found.seconds, found.quality, tuple(f"{n}" for n in range(len(family))))


def _timed(family: Family, subnet: int, arrays: list[Array], clock: Callable[[], float]) -> float:
    times = []
    for _ in range(3):
        begun = clock()
        _outputs(family, subnet, arrays, len(family.signature.outputs))
        times.append(clock() - begun)
    return max(min(times), 1e-6)


def qualities(family: Family, cost: Sequence[float]) -> list[float]:
    """The artifact's figure of merit per sub-network, higher is better; its cost where none was measured."""
    quality = family.program.quality
    if quality is None or any(quality.name not in entry.measured for entry in family.entries):
        return list(cost)
    sign = 1.0 if quality.higher_is_better else -1.0
    return [sign * entry.measured[quality.name] for entry in family.entries]


def open_model(path: Path, *, slo_s: float, threads: int = 1, seconds: float = 10.0) -> Model:
    """Load an artifact and measure it.

    Raises:
        ArtifactError: it is damaged, or has no batch axis.
        ValueError: even its smallest sub-network takes longer than the promise.
    """
    family = load(path, threads=threads)
    inputs_of(family)
    # One thread's own CPU time leaves out what a busy machine gives to others; that is for the correction to learn.
    clock = time.thread_time if threads == 1 else time.perf_counter
    table = measure(family, slo_s=slo_s, seconds=seconds, clock=clock)
    least = min(line[0] for line in table.seconds)
    if least > 0.9 * slo_s:
        raise ValueError(f"the fastest sub-network takes {least * 1e3:.3g} ms, the promise is {slo_s * 1e3:.3g} ms")
    return Model(family, table)
