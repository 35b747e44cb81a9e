"""Several processes train one network: each takes its share of every batch, and gradients are averaged.

The processes are torch's own (`torchrun`, or `torch.distributed.init_process_group` of the user). A plain network that
is trained plainly runs in torch's `DistributedDataParallel`. A family uses other parameters in every step and has its
gradients averaged by hand after the backward pass, as do recipes of one's own. `fully_shard` (FSDP2) shards a copy of a
plain network, whose weights come back at the end.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pliant.core import PliantError, seeded
from pliant.learn.checkpoint import Subject
from pliant.learn.recipe import Plain, Recipe

_T = TypeVar("_T")
KINDS = ("auto", "off", "ddp", "fsdp2")
_PATIENCE = timedelta(minutes=10)  # how long a process waits for the others, where the group is made here
_BUCKET = 1 << 23  # entries that travel together


def join(kind: str, device: torch.device) -> tuple[int, int]:
    """The rank of this process and how many there are; torch's group is made where it is asked for and missing.

    Args:
        kind: "auto" (the group that is there, else this process alone), "off", "ddp" or "fsdp2".
        device: where the network is trained; it chooses the backend (gloo for a CPU, nccl for CUDA).

    Raises:
        PliantError: "ddp" or "fsdp2" without a group and without the variables that `torchrun` sets.
    """
    if kind == "off":
        return 0, 1
    if not distributed.is_initialized():
        if kind == "auto":
            return 0, 1
        if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
            fix = "start it with torchrun, or call torch.distributed.init_process_group first"
            raise PliantError(f"distributed={kind!r}, but this process belongs to no group", fix=fix)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where nccl works
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return distributed.get_rank(), distributed.get_world_size()


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where "cuda" alone is named and `torchrun` says which it is."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:  # type: ignore[unreachable]
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # type: ignore[unreachable]
    return device


def team(kind: str, net: nn.Module, recipe: Recipe, base: "Team") -> "Team":
    """How these processes train that network.

    Raises:
        PliantError: "fsdp2" with a family or with a recipe that does more than `optimizer.step()`.
    """
    rank, size, device = base.rank, base.size, base.device
    if kind == "fsdp2":
        from pliant.learn.sharding import Sharded  # made of this module's

        return Sharded(net, recipe, rank, size, device)
    if size == 1:
        return Team(net, rank, size, device)
    if type(recipe) is Plain and not is_family(net):
        return _Wrapped(net, rank, size, device)
    return Averaged(net, rank, size, device)


def is_family(net: nn.Module) -> bool:
    """Whether a network is an Elastic, whose room is above this one."""
    return hasattr(net, "touched")


class Team:
    """One process of those that train a network; this class is the process that trains alone.

    Attributes:
        net: the network whose parameters are optimized here.
        rank: the number of this process; 0 writes the run folder.
        size: how many there are.
    """

    def __init__(self, net: nn.Module, rank: int, size: int, device: torch.device) -> None:
        self.net, self.rank, self.size, self.device = net, rank, size, device

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    @property
    def running(self) -> nn.Module:
        """What a recipe calls."""
        return self.net

    def least(self, rows: int) -> int:
        """The fewest samples of a batch where others have `rows`: two for every process, or one if that is all."""
        return 2 * self.size if rows >= 2 * self.size else self.size

    def check_rows(self, rows: int) -> None:
        """Raises `ValueError` where a batch has not a sample for every process."""
        if rows < self.size:
            raise ValueError(f"a batch must have a sample for each of the {self.size} processes, got {rows}")

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this process's."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def mean(self, value: float) -> float:
        """A number, averaged over the processes."""
        return self._total(value)[0] / self.size if self.size > 1 else value

    def any(self, *flags: bool) -> list[bool]:
        """What is true in some process."""
        return [total > 0 for total in self._total(*flags)] if self.size > 1 else list(flags)

    def _total(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with answers():
            distributed.all_reduce(tensor)
            return [float(value) for value in tensor.tolist()]

    def in_order(self, action: Callable[[], _T]) -> _T:
        """What all processes do, but process 0 first.

        Raises:
            PliantError: process 0 has failed; what it says, it says itself.
        """
        error: Exception | None = None
        found: list[_T] = []
        if self.first:
            try:
                found.append(action())
            except Exception as caught:
                error = caught
        failed = self.any(error is not None)[0]
        if error is not None:
            raise error
        if failed:
            raise PliantError("process 0 could not begin", fix="its own message says why")
        return found[0] if found else action()

    def check_alike(self, what: Any, problem: str, fix: str) -> None:
        """Whether all processes have the same JSON data. Raises `PliantError` where not."""
        if self.size == 1:
            return
        text = json.dumps(what, sort_keys=True).encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:4])
        found = torch.tensor([number, -number], dtype=torch.int64, device=self.device)
        with answers():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
            largest, smallest = found.tolist()
        if largest != -smallest:
            raise PliantError(problem, fix=fix)

    def start(self) -> None:
        """Everybody begins with the weights of process 0."""

    def begin_step(self, seed: int, step: int) -> None:
        """Called before the first forward pass of a step."""

    def passes(self, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward pass; `last` is the last one of a step."""
        return nullcontext()

    def end_step(self) -> None:
        """Between the last backward pass of a step and the update."""

    def whole(self, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """What stands for network and optimizer in a checkpoint: full tensors."""
        return self.net, optimizer

    def help_to_save(self, subject: Subject) -> None:
        """What the others do while process 0 writes a checkpoint of it."""

    def finish(self) -> None:
        """The trained weights are where the caller has the network."""


class Averaged(Team):
    """Gradients and BatchNorm's running statistics are averaged by hand."""

    def __init__(self, net: nn.Module, rank: int, size: int, device: torch.device) -> None:
        super().__init__(net, rank, size, device)
        self._buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
        self._before: list[Tensor] = []

    def start(self) -> None:
        """Weights and buffers of process 0."""
        with answers(), torch.no_grad():
            for tensor in [*self.net.parameters(), *self.net.buffers()]:
                whole = tensor.detach().contiguous()
                distributed.broadcast(whole, 0)
                tensor.copy_(whole)

    def begin_step(self, seed: int, step: int) -> None:
        """Seeds torch's generator and notes the buffers."""
        # Dropout of its own in every process, which a checkpoint need not know of.
        torch.manual_seed(seeded(seed, "torch", step, self.rank).initial_seed())
        self._before = [buffer.detach().clone() for buffer in self._buffers]

    def end_step(self) -> None:
        """Averages what the passes of this step have left."""
        self._average_gradients()
        self._average_buffers()

    def _average_gradients(self) -> bool:
        """Returns whether some parameter got a gradient in no process."""
        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
            raise PliantError("sparse gradients cannot be averaged", fix="make the embedding with sparse=False")
        used = self.any(*(parameter.grad is not None for parameter in parameters))
        gradients = []
        for parameter, wanted in zip(parameters, used, strict=True):
            if wanted and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self._average(gradients)
        return not all(used)

    def _average_buffers(self) -> None:
        # By value: BatchNorm does not tell torch's counter of versions that it has written.
        moved = [not torch.equal(b, before) for b, before in zip(self._buffers, self._before, strict=True)]
        if moved:
            used = self.any(*moved)
            self._average([buffer for buffer, wanted in zip(self._buffers, used, strict=True) if wanted])

    @torch.no_grad()
    def _average(self, tensors: Iterable[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with answers():
                distributed.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):  # type: ignore[no-untyped-call]
                tensor.copy_(part.view(tensor.shape))


class _Wrapped(Averaged):
    """A plain network in torch's `DistributedDataParallel`.

    The first step averages by hand and sees whether there are parameters without gradients: to look for them in every
    step costs time, and not to look for them is an error of torch where there are any.
    """

    _parallel: DistributedDataParallel | None = None

    @property
    def running(self) -> nn.Module:
        return self.net if self._parallel is None else self._parallel

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        quiet = nullcontext() if last or self._parallel is None else self._parallel.no_sync()
        try:
            with answers(), quiet:
                yield
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            problem = "which parameters get a gradient differs from step to step, which DistributedDataParallel refuses"
            raise PliantError(problem, fix="use a recipe of your own: then gradients are averaged by hand") from error

    def end_step(self) -> None:
        self._average_buffers()  # first: what is wrapped begins with those of process 0
        if self._parallel is None:
            unused = self._average_gradients()
            with answers():
                self._parallel = DistributedDataParallel(
                    self.net, forward_sync_buffers=False, find_unused_parameters=unused
                )


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors of one dtype, up to `_BUCKET` entries together."""
    found: list[list[Tensor]] = []
    space: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        bucket, entries = space.get(tensor.dtype, ([], 0))
        if not bucket or entries + tensor.numel() > _BUCKET:
            bucket, entries = [], 0
            found.append(bucket)
        bucket.append(tensor)
        space[tensor.dtype] = (bucket, entries + tensor.numel())
    return found


@contextmanager
def answers() -> Iterator[None]:
    """What torch says when another process is gone or too slow, in our words.

    Raises:
        PliantError: another process did not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error).lower()):
            raise
        line = str(error).strip().splitlines()[0]
        fix = "look at what it says, and start all processes again: the run folder goes on from its last checkpoint"
        raise PliantError(f"another process has failed or does not answer ({line})", fix=fix) from error
