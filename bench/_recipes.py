"""Recipes of contests by name: ours as rows of their own measure them, and the plain one they have to beat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch

from pliant.core import Config
from pliant.elastic import Elastic
from pliant.elastic.recipes import ProgressiveShrinking, Sandwich
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.learn import Recipe


@final
@dataclass(frozen=True)
class Uniform(ElasticRecipe):
    """Random sampling of the plain supernet: each step one sub-network, every knob drawn by itself, labels only.

    "Single Path One-Shot Neural Architecture Search with Uniform Sampling" (Guo et al. 2019, section 3.2).
    """

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """One sub-network of the space, all equally likely."""
        return [net.sample(generator)]


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "bignas": lambda: Sandwich(distil=True),
    "shrinking": ProgressiveShrinking,
    "uniform": Uniform,
}
"""Name of a job's recipe to the recipe, as trained by the rows bignas and ofa."""
