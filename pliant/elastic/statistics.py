"""BatchNorm statistics of sub-networks.

Training moves one set of running statistics by the batches of all sub-networks; those of a cut one, whose channels see
other inputs, are far from it. So they are estimated anew from training inputs, once for each sub-network.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.core import Config, map_tensors, tensors_of
from pliant.core._torch_private import version_of
from pliant.graph.graph import Graph
from pliant.graph.ir import Ref

if TYPE_CHECKING:
    from pliant.elastic.elastic import Elastic

ROWS = 1024
"""How many training inputs are remembered at most."""
BYTES = 1 << 26
"""Their memory at most."""
_CONFIGS = 256
"""For how many sub-networks statistics are kept."""


class Uncalibrated(UserWarning):
    """A sub-network runs with BatchNorm statistics that are not its own."""


class Statistics:
    """Inputs to estimate from, and what was estimated from them. Neither is part of any state dict or file.

    Args:
        graph: the traced network.
    """

    def __init__(self, graph: Graph) -> None:
        states = {node.name: node.target for node in graph.program.states}
        norms = [node.args[3:5] for node in graph.program if node.packet == "aten.batch_norm"]
        places = {name: i for i, name in enumerate(states.values())}
        # A mean begins with zeros, a variance with ones.
        read = [(states[r.name], start) for pair in norms for start, r in enumerate(pair) if isinstance(r, Ref)]
        self._begun = dict(read)
        self._places = {name: places[name] for name in self._begun}
        self._batches: list[Any] = []
        self._known: dict[Config, dict[int, Tensor]] = {}
        self._seen: tuple[Any, ...] = ()
        self._told = self._mixed = False

    def __bool__(self) -> bool:
        """Whether the network has any."""
        return bool(self._places)

    def remember(self, batches: Iterable[Any]) -> None:
        """Keep the first `ROWS` rows, within `BYTES`, as copies on the CPU; no batches forget those that were kept."""
        self._batches, left = [], ROWS
        self.forget()
        for batch in batches if self else ():
            rows = min(len(tensor) for tensor in tensors_of(batch))
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(batch)) // max(rows, 1)
            if not self._batches:
                left = max(2, min(ROWS, BYTES // max(size, 1)))
            kept = min(rows, left)
            if kept > 1:  # one row alone may have no variance
                self._batches.append(map_tensors(lambda tensor, n=kept: _copy(tensor[:n]), batch))  # type: ignore[misc]
                left -= kept
            if left < 2:
                break

    def forget(self) -> None:
        """Drop what was estimated: weights are about to change."""
        self._known.clear()

    def trained(self, *, whole: bool) -> None:
        """A forward of training has moved the running statistics by those of its batch."""
        self._mixed = self._mixed or not whole
        self.forget()

    def inputs(self, net: "Elastic", *, whole: bool, frames: int = 3) -> list[Any] | None:
        """Batches that a sub-network is to be calibrated with, where it needs it and there are any.

        Where there are none the user, so many `frames` above, is told so, once; unless nothing has moved the statistics
        yet, or the whole network alone, and this is it.
        """
        if not self:
            return None
        if self._batches:
            like = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
            return [map_tensors(lambda t: t.to(like) if t.is_floating_point() else t, batch) for batch in self._batches]
        if not self._told and (self._mixed or not whole) and self._moved(net):
            self._told = True
            text = (  # the tests ignore it by its beginning
                f"this sub-network of {net.name} runs with BatchNorm statistics that are not its own, so its outputs "
                "may be far off: give extract(config, calibrate=batches) training inputs, or the network itself by "
                "net.remember(batches), as pliant.train does"
            )
            warnings.warn(text, Uncalibrated, stacklevel=frames)
        return None

    def _moved(self, net: "Elastic") -> bool:
        """Whether any statistic is another than at the beginning (means of 0, variances of 1)."""
        current = net._current()
        return any(bool((current[name] != start).any()) for name, start in self._begun.items())

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Tell nobody."""
        before, self._told = self._told, True
        try:
            yield
        finally:
            self._told = before

    def of(self, net: "Elastic", *, whole: bool) -> dict[int, Tensor]:
        """The active sub-network's own statistics by the place of their state in the runner's list.

        Empty where those in the buffers have to serve: nothing is remembered, or functional transforms have put other
        tensors in the place of the parameters.
        """
        if not self._batches or not all(_own(owner, leaf) for owner, leaf in net._owners):
            self.inputs(net, whole=whole, frames=6)  # of them two are torch's
            return {}
        # Counters of batches are written to in evaluation as well.
        current = [tensor for tensor in net._current().values() if tensor.is_floating_point()]
        seen = tuple((id(tensor), _version(tensor), tensor.dtype, tensor.device) for tensor in current)
        if seen != self._seen:
            self.forget()
            self._seen = seen
        if net.active not in self._known:
            while len(self._known) >= _CONFIGS:
                del self._known[next(iter(self._known))]
            self._known[net.active] = self._estimated(net)
        return self._known[net.active]

    def _estimated(self, net: "Elastic") -> dict[int, Tensor]:
        device = next(iter(net._current().values())).device
        kept = [device] if device.type == "cuda" else []
        plain = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), plain, torch.random.fork_rng(devices=kept):
            module = net._extracted(net.active, None)
        found = dict(module.named_buffers(remove_duplicate=False))
        return {place: found[name] for name, place in self._places.items() if name in found}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else version_of(tensor)  # nobody counts those of inference mode


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _own(owner: nn.Module, leaf: str) -> bool:
    parameter = owner._parameters.get(leaf)
    return parameter is None or isinstance(parameter, nn.Parameter)
