"""Recipes: which sub-networks a training step runs, and with which losses."""

from pliant.elastic.recipes.nested import Nested as Nested
from pliant.elastic.recipes.sandwich import Sandwich as Sandwich
from pliant.learn import Plain as Plain

__all__ = ["Nested", "Plain", "Sandwich"]
