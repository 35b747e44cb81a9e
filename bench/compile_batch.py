"""compile-batch: 32 rows at once through networks that decide, over eager row by row and over running everything.

CPU seconds of one thread, side by side, medians, one network after the other; what is done of a network stays when the
row is stopped. `worst_over_all` is our time over that of running everything, for networks without loops: all 32 rows
through every block of the most expensive way, nothing skipped, and through all cases of a choice by index.
"""

import statistics
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench._common import Outcome, cached, interleaved, one_thread
from bench.compile_dynamic import key_of
from pliant.core import seeded
from pliant.deploy import compile as compiled
from pliant.testing.zoo_dynamic_text import dynamic
from pliant_runtime import Family, load
from pliant_runtime.rows import _argument

REQUIRED = ("matmul_x_rowwise", "conv_x_rowwise", "worst_over_all")
MATMUL = ("deebert", "patience", "mixture_of_depths", "router", "act", "fixed_point")
CONVOLUTION = ("sdn_resnet", "sdn_vgg", "skipnet_fc", "skipnet_rnn", "blockdrop", "nested_skip")
ROWS, ROUNDS = 32, 9


def run() -> Outcome:
    """The row."""
    one_thread()
    results = {name: timed(name) for name in [*MATMUL, *CONVOLUTION]}
    overs = [each["over_all"] for each in results.values() if "over_all" in each]
    figures = {
        "matmul_x_rowwise": min(results[name]["x_rowwise"] for name in MATMUL),
        "conv_x_rowwise": min(results[name]["x_rowwise"] for name in CONVOLUTION),
        "matmul_median_x_rowwise": statistics.median(results[name]["x_rowwise"] for name in MATMUL),
        "conv_median_x_rowwise": statistics.median(results[name]["x_rowwise"] for name in CONVOLUTION),
        "worst_over_all": max(overs),
        "largest_error": max(each["error"] for each in results.values()),
    }
    return Outcome(figures, f"{ROWS} random rows", [0], settings={"networks": results})


def timed(name: str, rounds: int = ROUNDS) -> dict[str, float]:
    """`one`, measured only once."""
    return cached(key_of("compile-batch", net=name, rows=ROWS, rounds=rounds), lambda _: one(name, rounds))[1]


def one(name: str, rounds: int = ROUNDS) -> dict[str, float]:
    """One network."""
    warnings.simplefilter("ignore")
    net, draw = dynamic(name)
    generator = seeded(0, "bench", "batch", name)
    rows = [draw(generator) for _ in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        family = load(compiled(net, Path(folder) / "net", example=rows[0]))
        batch = np.concatenate([row.numpy() for row in rows])
        calls = {"ours": lambda: family.run(batch), "eager": lambda: [net(row) for row in rows]}
        everything = _everything(family, batch)
        if everything is not None:
            calls["all"] = everything
        single = [_first(family.run(row.numpy())) for row in rows]
        together = family.run(batch)
        many = [_first(each) for each in together] if isinstance(together, list) else _first(together)
        error = max(float(np.abs(many[n] - one.reshape(np.shape(many[n]))).max()) for n, one in enumerate(single))
        interleaved(calls, 2)
        times = {key: statistics.median(each) for key, each in interleaved(calls, rounds).items()}
    found = {"x_rowwise": times["eager"] / times["ours"], "error": error}
    return found | ({"over_all": times["ours"] / times["all"]} if everything is not None else {})


def _first(output: Any) -> Any:
    """The first array of an output."""
    while not isinstance(output, np.ndarray):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def _everything(family: Family, batch: Any) -> Any:
    """A function that takes all rows through everything; None for a network with loops or row-by-row blocks."""
    states = family.program.states
    steps = [state.step for state in states]
    if any(edge.state <= number for number, step in enumerate(steps) if step for edge in step.next.edges):
        return None
    if any(state.graph and not step.rows.graph for state, step in zip(states, steps, strict=True) if step):
        return None

    @cache
    def depth(number: int) -> tuple[int, int]:
        """Nodes of the graphs still to come, and the side that has most of them."""
        step = steps[number]
        assert step is not None  # all states of such a program decide
        below = [(depth(edge.state)[0], side) for side, edge in enumerate(step.next.edges)]
        here = len(family._executor._graphs[states[number].graph]) if states[number].graph else 0
        most, side = max(below, default=(0, 0))
        return most + here, side

    run = family._executor.batch
    kept = np.arange(len(batch))

    def everything() -> Any:
        waiting = {0: [batch.reshape(len(batch), 1, *batch.shape[1:])]}
        while True:  # states follow states of smaller numbers only
            number = min(waiting)
            step, values = steps[number], waiting.pop(number)
            assert step is not None  # as above
            values = values + run._computed(number, states[number], step, values, len(batch))
            if not step.next.edges:
                if waiting:  # another case of the last choice
                    continue
                return run._assembled(len(batch), [((kept, values, False), number)])
            edges = step.next.edges if step.next.kind == "switch" else [step.next.edges[depth(number)[1]]]
            for edge in edges:
                if edge.state not in waiting:
                    given = [_argument(edge, place, values, step, len(batch)) for place in range(len(edge.args))]
                    waiting[edge.state] = given

    return everything
