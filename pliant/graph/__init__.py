"""Tied axes: what a network's channels, heads, neurons and layers are, and what must change with each."""

from pliant.graph.graph import Cost as Cost
from pliant.graph.graph import Graph as Graph
from pliant.graph.graph import Group as Group
from pliant.graph.graph import trace as trace
