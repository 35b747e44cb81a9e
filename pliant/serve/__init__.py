"""Serving under a latency promise; what runs lives in `pliant_runtime.serving`, which needs no torch."""

from pliant_runtime.serving.command import load as load
from pliant_runtime.serving.command import serve as serve
from pliant_runtime.serving.command import simulate as simulate
