"""Benchmarks: one module for each measured row, run with `python -m bench ROW`."""
