"""What is compiled: which sub-networks of which network, and on which example."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from pliant.core import Config, PliantError, Space
from pliant.deploy.pack import Source


@runtime_checkable
class Sliceable(Protocol):
    """What a network must offer to be compiled as a family; `Elastic` does."""

    space: Space

    def extract(self, config: Config, *, calibrate: Any = None) -> nn.Module:
        """A sub-network as a plain module."""
        ...

    def sources(self, config: Config) -> Mapping[str, Any]:
        """Where each tensor of the extracted module comes from in the full network."""
        ...


def points_of(net: nn.Module, configs: Any) -> list[tuple[Config, dict[str, float]]]:
    """The configs to compile and the figures that came with them.

    Args:
        net: the network.
        configs: None (the largest sub-network), a config, a point with `.config` and `.values`, or an iterable of
            either, such as a `Front`.

    Raises:
        ValueError: no configs, configs for a network that has none, or unknown knobs and values.
        TypeError: something else.
    """
    if not isinstance(net, Sliceable):
        if configs is not None:
            raise ValueError("configs choose sub-networks of an Elastic; a plain module is compiled as it is")
        return [(Config({}), {})]
    if configs is None:
        return [(net.space.largest(), {})]
    if isinstance(configs, Mapping) or hasattr(configs, "config"):
        configs = [configs]
    if not isinstance(configs, Iterable):
        raise TypeError(f"configs are a Front, configs or points, got {type(configs).__name__}")
    found: dict[Config, dict[str, float]] = {}
    for item in configs:
        config, values = (item, {}) if isinstance(item, Mapping) else _point(item)
        found.setdefault(net.space.validate(config), {key: float(value) for key, value in values.items()})
    if not found:
        raise ValueError("there is nothing to compile: no configs")
    return list(found.items())


def _point(item: Any) -> tuple[Mapping[str, Any], Mapping[str, float]]:
    if not hasattr(item, "config"):
        raise TypeError(f"a config is a mapping or a point with .config, got {type(item).__name__}")
    return item.config, dict(getattr(item, "values", {}))


def extracted(net: nn.Module, config: Config, batches: Any) -> tuple[nn.Module, Mapping[str, Source]]:
    """One sub-network as a plain module in evaluation mode, and where its tensors come from."""
    if not isinstance(net, Sliceable):
        return net, {name: (name, None) for name in net.state_dict()}
    module = net.extract(config, calibrate=batches) if batches is not None else net.extract(config)
    return module.eval(), {name: (source, ranges) for name, (source, ranges) in net.sources(config).items()}


def full_state(net: nn.Module) -> dict[str, Any]:
    """The full network's tensors as arrays; those numpy has no type for are left out (they are refused on use)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    return {name: tensor.numpy() for name, tensor in state.items() if tensor.dtype != torch.bfloat16}


def example_of(net: nn.Module, example: Any, data: Any) -> Any:
    """The example input: the one given, else real data, else the network's own.

    Raises:
        PliantError: there is none.
    """
    if example is not None:
        return example
    if data is not None:
        return data.example(4)
    own = getattr(net, "example", None)
    if own is None:
        raise PliantError("no example input", where=type(net).__name__, fix="pass example= or data=")
    return own


def name_of(net: nn.Module) -> str:
    """What the network is called: its `name`, else its class."""
    name = getattr(net, "name", None)
    return name if isinstance(name, str) and name else type(net).__name__
