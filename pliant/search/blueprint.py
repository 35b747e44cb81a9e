"""Blueprint: a space of architectures, searched as a family is."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pliant.core import Config, PliantError, Space, call, map_tensors, seeded
from pliant.search.identity import identity
from pliant.search.measurements import digest

_KEPT = 16


class Blueprint:
    """Networks that share no weights: each config of a space with a builder is built, and trained if you say how.

    What `search` needs of a network, so that architectures are searched with the same searchers, objectives, cache and
    resumption as the sub-networks of a family.

    Args:
        space: with a builder that gives an `nn.Module`; see `pliant.core.Space`.
        example: an example input, with a batch axis.
        train: from the fresh module and its config to the trained one; None judges networks as they are initialised.
        name: of the family of networks.
        seed: of the initialisation; each config has its own stream.

    Raises:
        ValueError: the space has no builder.
    """

    def __init__(
        self,
        space: Space,
        example: Any,
        *,
        train: Callable[[nn.Module, Config], nn.Module] | None = None,
        name: str = "blueprint",
        seed: int = 0,
    ) -> None:
        if space.builder is None:
            raise ValueError("a blueprint needs a space that builds modules: Space(parts, build=...)")
        self.space, self.example, self.seed = space, example, seed
        self._train = train
        # measurements are kept under this name: another builder or training must not find them
        built_by = [identity(space.builder), None if train is None else identity(train), seed]
        self.name = f"{name} {digest(built_by)[:12]}"
        self._made: dict[Config, nn.Module] = {}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A fresh network, the same for the same config and seed.

        Raises:
            PliantError: the builder gave no module.
        """
        config = self.space.validate(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, "blueprint", config.to_json()).initial_seed())
            module = self.space.build(config)
        if not isinstance(module, nn.Module):
            raise PliantError(
                f"the builder gave {type(module).__name__}, no module, for {config.to_json()}", where=self.name
            )
        return module

    def extract(self, config: Config, *, calibrate: Any = None) -> nn.Module:
        """The trained network in evaluation mode; `calibrate` is not needed, its statistics are its own."""
        config = self.space.validate(config)
        if config not in self._made:
            module = self.build(config)
            module = module if self._train is None else self._train(module, config)
            self._made = dict([*self._made.items(), (config, module.eval())][-_KEPT:])
        return self._made[config]

    def cost(self, config: Config) -> "BlueprintCost":
        """FLOPs of matrix operators for one sample, parameters and their bytes."""
        module = self.build(config).eval()
        sample = map_tensors(lambda tensor: tensor[:1] if tensor.dim() else tensor, self.example)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(module, sample)
        parameters = list(module.parameters())
        return BlueprintCost(
            int(counter.get_total_flops()),
            sum(tensor.numel() for tensor in parameters),
            sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: networks share no weights."""
        return {}


class BlueprintCost:
    """Cost of one network.

    Args:
        flops: for one sample.
        parameters: numbers that are trained.
        bytes: they take.
    """

    def __init__(self, flops: int, parameters: int, bytes: int) -> None:
        self.flops, self.parameters, self.bytes = flops, parameters, bytes
