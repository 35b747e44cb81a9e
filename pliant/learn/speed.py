"""How a training step is computed: precision, memory layout, compiled code, and batches that are there in time.

What "auto" means is a rule, not a probe: a probe on a busy machine would choose otherwise the next time, and the choice
moves numbers. The run folder keeps the choice all the same, so that a training goes on as it was begun.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pliant.core import PliantError, map_tensors, read_json, write_json
from pliant.core._torch_private import compiled_call, set_compiled_call
from pliant.data import Split
from pliant.learn.distributed import is_family

_Made = TypeVar("_Made")
PRECISIONS = ("auto", "float32", "bfloat16")
LAYOUTS = ("auto", "contiguous", "channels_last")
_KEY = "computed"
_AHEAD = 2  # batches that wait for a GPU


@dataclass(frozen=True)
class Ways:
    """How the steps of a training are computed; moves the last digits of numbers.

    Args:
        precision: "float32" or "bfloat16".
        layout: "contiguous", "channels_last", or "as it is": that of the network, whichever it has.
        processes: how many train together.
    """

    precision: str
    layout: str
    processes: int = 1

    @property
    def format(self) -> torch.memory_format | None:
        """torch's name for the layout; None leaves tensors alone."""
        formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        return formats.get(self.layout)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The autocast context of a training step on a device."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


def ways(net: nn.Module, device: torch.device, *, precision: str, layout: str, processes: int = 1) -> Ways:
    """What the settings of a training mean for a network on a device.

    "auto" takes bfloat16 on CUDA and float32 elsewhere, and channels-last where most weights are those of convolutions
    over images.
    """
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if layout == "auto":
        layout = "channels_last" if convolves(net) else "as it is"
    return Ways(precision, layout, processes)


def convolves(net: nn.Module) -> bool:
    """Whether most of a network's weights (tensors with two axes or more) have four axes."""
    axes = [parameter.dim() for parameter in net.parameters() if parameter.dim() >= 2]
    return 2 * sum(count == 4 for count in axes) > len(axes)


def settled(run: Path | None, chosen: Ways) -> Ways:
    """The ways a run folder was begun with; those chosen now are written where it has none.

    Raises:
        PliantError: it was begun by another number of processes.
    """
    if run is None:
        return chosen
    path = run / "config.json"
    config = read_json(path)
    if _KEY not in config:
        write_json(path, {**config, _KEY: asdict(chosen)})
        return chosen
    found = Ways(**config[_KEY])
    if found.processes != chosen.processes:
        problem = f"this run was begun by {found.processes} processes, now there are {chosen.processes}"
        raise PliantError(problem, where=str(run), fix=f"start {found.processes}, or choose another run folder")
    return found


@contextmanager
def laid_out(net: nn.Module, format: torch.memory_format | None) -> Iterator[None]:
    """The network's tensors of four axes in a memory format; afterwards each has the strides it had before."""
    if format is None:
        yield
        return
    tensors = [tensor for tensor in [*net.parameters(), *net.buffers()] if tensor.dim() == 4]
    before = [tensor.stride() for tensor in tensors]
    for tensor in tensors:
        # A copy, for its strides: `contiguous` leaves those of 1 x 1 kernels, which are not what gradients have.
        tensor.data = torch.empty_like(tensor.data, memory_format=format).copy_(tensor.data)
    try:
        yield
    finally:
        for tensor, stride in zip(tensors, before, strict=True):
            if tensor.stride() != stride:
                tensor.data = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(
                    tensor.data
                )


def align(optimizer: torch.optim.Optimizer) -> None:
    """Give state that was read from a checkpoint the memory layout of its parameter, as state that is made has."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)


@contextmanager
def compiled(net: nn.Module, wanted: bool) -> Iterator[None]:
    """The network runs what `torch.compile` makes of it; afterwards, and in `plainly`, its own code.

    Every batch size is compiled by itself: code for any size would be made when a second one is seen, so that a resumed
    training would not compute the same digits.

    Raises:
        PliantError: a family, each of whose sub-networks would be compiled anew.
    """
    if not wanted:
        yield
        return
    if is_family(net):
        problem = "a family cannot be compiled: each sub-network would be compiled anew, and torch stops after eight"
        raise PliantError(problem, where="compile=True", fix="train it with compile=False; compile what is extracted")
    before = compiled_call(net)
    net.compile(dynamic=False)
    try:
        yield
    finally:
        set_compiled_call(net, before)


@contextmanager
def plainly(net: nn.Module) -> Iterator[None]:
    """The network's own code for a block within `compiled`: validation has other batch sizes."""
    before = compiled_call(net)
    set_compiled_call(net, None)
    try:
        yield
    finally:
        set_compiled_call(net, before)


def batches(
    split: Split, parts: Sequence[Tensor], device: torch.device, format: torch.memory_format | None = None
) -> Generator[tuple[Any, Tensor]]:
    """Inputs and targets on a device; made ahead of time where that is not the CPU.

    On a CPU a thread of its own would take from the step what it gives to the batch: the samples are in memory already,
    and to pick a batch costs less than a percent of a step.

    Args:
        split: the samples.
        parts: for each batch the samples to pick, int64.
        device: where batches go.
        format: memory format of inputs of four axes; None leaves them as they are.
    """

    def pick(tensor: Tensor, part: Tensor) -> Tensor:
        return tensor.index_select(0, part.to(tensor.device))  # several times faster than tensor[part]

    def make(part: Tensor) -> tuple[Any, Tensor]:
        inputs = map_tensors(lambda tensor: placed(pick(tensor, part), device, format), split.inputs)
        return inputs, placed(pick(split.targets, part), device)

    made = (make(part) for part in parts)
    return made if device.type == "cpu" else ahead(made)


def placed(tensor: Tensor, device: torch.device, format: torch.memory_format | None = None) -> Tensor:
    """A tensor on a device; images in the memory format."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    else:
        tensor = tensor.to(device)
    return tensor if format is None or tensor.dim() != 4 else tensor.contiguous(memory_format=format)


def ahead(made: Iterator[_Made], *, waiting: int = _AHEAD) -> Generator[_Made]:
    """What an iterator makes, made in a thread of its own, `waiting` items ahead. Order and errors are the same."""
    done = threading.Event()
    ready: queue.Queue[tuple[_Made | None, BaseException | None]] = queue.Queue(waiting)

    def put(item: tuple[_Made | None, BaseException | None]) -> bool:
        while not done.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in made:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        done.set()
        thread.join()
