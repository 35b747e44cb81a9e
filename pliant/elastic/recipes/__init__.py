"""Recipes: which sub-networks a training step runs, and with which losses."""

from pliant.elastic.recipes.nested import Nested as Nested
from pliant.elastic.recipes.one_pass import AllWidths as AllWidths
from pliant.elastic.recipes.progressive import ProgressiveShrinking as ProgressiveShrinking
from pliant.elastic.recipes.sandwich import Sandwich as Sandwich
from pliant.learn import Plain as Plain

__all__ = ["AllWidths", "Nested", "Plain", "ProgressiveShrinking", "Sandwich"]
