"""Latency measured so that it can be trusted: the same code as on machines without torch."""

from pliant_runtime.timing import Comparison as Comparison
from pliant_runtime.timing import Latency as Latency
from pliant_runtime.timing import compare as compare
