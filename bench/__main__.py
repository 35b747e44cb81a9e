"""`python -m bench` lists the rows; `python -m bench ROW ...` runs them."""

import argparse
import sys
import time
from importlib import import_module

from bench import _bars
from bench._common import write_result

ROWS = {
    "bignas": "bignas",
    "compile-batch": "compile_batch",
    "compile-dynamic": "compile_dynamic",
    "compile-fuzz": "compile_fuzz",
    "coverage": "coverage",
    "deep-architect": "deep_architect",
    "demo": "demo",
    "digits": "digits",
    "graph-speed": "graph_speed",
    "hardware-table": "hardware_table",
    "hw-aware-search": "hw_aware_search",
    "main-job": "main_job",
    "ofa": "ofa",
    "onepass": "onepass",
    "onnx-net": "onnx_net",
    "peers": "peers",
    "search-front": "search_front",
    "search-predictor": "search_predictor",
    "search-replay": "search_replay",
    "search-resume": "search_resume",
    "serve-fuzz": "serve_fuzz",
    "serve-memory": "serve_memory",
    "serve-overhead": "serve_overhead",
    "serve-overload": "serve_overload",
    "serve-slo": "serve_slo",
    "serve-slo-http": "serve_slo_http",
    "sortednet": "sortednet",
    "train-once": "train_once",
}
"""Row -> module."""


def measure(row: str) -> None:
    """Run a row, print its figures and write its results file."""
    print(row, flush=True)
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = import_module(f"bench.{ROWS[row]}").run()
    path = write_result(row, outcome, time.perf_counter() - wall, time.process_time() - cpu)
    for name, value in outcome.figures.items():
        beside = f"   baseline {outcome.baseline[name]:.5g}" if name in outcome.baseline else ""
        print(f"  {name:<32} {value:.5g}{beside}")
    print(f"  -> {path}")
    _bars.update()


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measured rows; without a name lists them.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)}")
    rows: list[str] = parser.parse_args(arguments).rows
    for row in rows:
        if row not in ROWS:
            parser.error(f"no row {row!r}; rows are {', '.join(ROWS)}")
    if not rows:
        for row, module in ROWS.items():
            print(f"{row:<12} {(import_module(f'bench.{module}').__doc__ or '').splitlines()[0]}")
    for row in rows:
        measure(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
