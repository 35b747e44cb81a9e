"""Compress: one smaller network out of a larger one."""

from pliant.compress.prune import prune as prune
