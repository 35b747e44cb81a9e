"""Training whose parameters are sharded over processes: torch's `fully_shard` (FSDP2)."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from pliant.core import PliantError
from pliant.learn.checkpoint import Subject
from pliant.learn.distributed import Averaged, answers, is_family
from pliant.learn.recipe import Recipe


class Sharded(Averaged):
    """A copy of a plain network, sharded by torch's `fully_shard`; the network itself gets its weights at the end."""

    def __init__(self, net: nn.Module, recipe: Recipe, rank: int, size: int, device: torch.device) -> None:
        if is_family(net) or type(recipe).update is not Recipe.update:
            problem = "a family cannot be sharded: its sub-networks are slices, and their steps move slices"
            raise PliantError(problem, where="distributed='fsdp2'", fix="use distributed='ddp'")
        super().__init__(net, rank, size, device)
        super().start()  # before the copy: what is sharded is alike everywhere
        self._home = net
        self._mesh = init_device_mesh(device.type, (size,))
        self.net = _shard(copy.deepcopy(net), self._mesh)
        self._buffers = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]

    def start(self) -> None:
        """The copy was made of the weights of process 0."""

    def passes(self, last: bool) -> AbstractContextManager[None]:
        """torch averages in every backward pass."""
        return answers()

    def end_step(self) -> None:
        """The buffers are not sharded."""
        self._average_buffers()

    def whole(self, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Every process has to ask them for their state."""
        return _WholeNetwork(self.net), _WholeOptimizer(optimizer)

    def help_to_save(self, subject: Subject) -> None:
        """Sends its shards."""
        with answers():
            subject.net.state_dict()
            subject.optimizer.state_dict()

    def finish(self) -> None:
        """The weights go back, whole."""
        with answers():
            self._home.load_state_dict(_WholeNetwork(self.net).state_dict())


def _shard(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    units = _units(net)
    owners = [id(parameter) for unit in units for parameter in unit.parameters()]
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    names = [id(parameter) for _, parameter in net.named_parameters(remove_duplicate=False)]
    # A parameter with two names may be in two units, which torch cannot shard: then the network is one unit.
    if len(owners) == len(inside) and len(names) == len(set(names)):
        for unit in units:
            fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def _units(net: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists and sequences: blocks, that is, where a network has them."""
    found: list[nn.Module] = []
    for child in net.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [member for member in child if any(True for _ in member.parameters())]
        else:
            found += _units(child)
    return found


class _WholeNetwork:
    """The state dict of a sharded network, as full tensors. Every process has to call it."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def state_dict(self) -> dict[str, Any]:
        return {name: _full(value) for name, value in self._net.state_dict().items()}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        own = self._net.state_dict()
        if set(own) != set(values):
            raise KeyError(f"other names: {', '.join(sorted(set(own) ^ set(values))[:3])}")
        # In the order that all processes have: what was read comes in any.
        self._net.load_state_dict({name: _like(values[name], like) for name, like in own.items()})


class _WholeOptimizer:
    """The state of the optimizer of a sharded network, as full tensors. Every process has to call it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        found = self._optimizer.state_dict()
        state = {i: {key: _full(value) for key, value in values.items()} for i, values in found["state"].items()}
        return {**found, "state": state}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for i, own in sorted(values["state"].items()):
            like = parameters[i]
            state[i] = {key: _like(own[key], like) if _fits(own[key], like) else own[key] for key in sorted(own)}
        self._optimizer.load_state_dict({**values, "state": state})


def _full(value: Any) -> Any:
    whole = getattr(value, "full_tensor", None)
    return value if whole is None else whole()


def _fits(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def _like(value: Any, like: Any) -> Any:
    """A full tensor, sharded as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
