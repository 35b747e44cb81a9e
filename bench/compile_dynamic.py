"""compile-dynamic: networks that decide, compiled; right on every input and edge, faster than eager and torch.compile.

Networks are those of `pliant.testing.zoo_dynamic_text`, compiled unchanged. Each is compared with the module on 500
random inputs and over every edge that can be forced; decisions closer than 1e-5 to their threshold are counted apart.
Times are CPU seconds of one thread at batch 1, all contestants side by side on the same inputs, medians; one network
after the other, when all comparisons are done. What is done of a network stays when the row is stopped.
"""

import gc
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench._common import ROOT, Outcome, cached, in_workers, interleaved, machine, one_thread, sources
from pliant.core import PliantError, seeded
from pliant.deploy import compile as compiled
from pliant.deploy.decide import deciding, deciding_free
from pliant.deploy.prove import prove
from pliant.deploy.verify import arrays
from pliant.testing.zoo_dynamic import SkipNet
from pliant.testing.zoo_dynamic_text import DYNAMIC, dynamic
from pliant_runtime import Family, load

REQUIRED = (
    "networks",
    "compiled",
    "mismatches",
    "median_x_eager",
    "min_x_eager",
    "median_x_compile",
    "host_us_per_state",
    "compile_s_40_blocks",
)
INPUTS, TIMED, ROUNDS = 500, 20, 9


def run() -> Outcome:
    """The row."""
    one_thread()
    results = dict(zip(DYNAMIC, in_workers(proven, list(DYNAMIC)), strict=True))
    done = {name: each for name, each in results.items() if each["compiled"]}
    for name, each in done.items():
        each |= timed(name)
    eager = [each["x_eager"] for each in done.values()]
    others = [each["x_compile"] for each in done.values() if "x_compile" in each]
    figures = {
        "networks": len(results),
        "compiled": len(done),
        "mismatches": sum(each["mismatches"] for each in results.values()),
        "near_threshold_share": sum(each["near"] for each in done.values()) / (INPUTS * max(len(done), 1)),
        "edges_checked_share": sum(each["covered"] for each in done.values()) / sum(e["edges"] for e in done.values()),
        "median_x_eager": statistics.median(eager),
        "min_x_eager": min(eager),
        "median_x_compile": statistics.median(others),
        "min_x_compile": min(others),
        "host_us_per_state": host_us(),
        "compile_s_40_blocks": in_workers(forty, [40])[0],
    }
    return Outcome(figures, f"{INPUTS} random inputs per network", [0], settings={"networks": results})


def key_of(what: str, **more: Any) -> dict[str, Any]:
    """What determines a result of this row: the sources of everything that takes part, and what is asked."""
    runtime = hashlib.sha256()
    for path in sorted((ROOT / "runtime" / "pliant_runtime").glob("*.py")):
        runtime.update(path.read_bytes())
    rooms = sources(str(ROOT / "pliant" / "testing" / "zoo_dynamic_text.py"), ("flow", "deploy", "export"))
    images = sources(str(ROOT / "pliant" / "testing" / "zoo_dynamic.py"), ())
    return {"row": what, "sources": [rooms, images, runtime.hexdigest()], "machine": machine(), **more}


def proven(name: str, inputs: int = INPUTS) -> dict[str, Any]:
    """`compared`, made only once."""
    return cached(key_of("compile-dynamic proof", net=name, inputs=inputs), lambda _: compared(name, inputs))[1]


def timed(name: str, rounds: int = ROUNDS) -> dict[str, float]:
    """`speed` of a network, measured only once."""

    def make(folder: Path) -> dict[str, float]:
        warnings.simplefilter("ignore")
        net, rows = drawn(name, TIMED)
        return speed(net, load(compiled(net, folder / "net", example=rows[0])), rows, rounds)

    return cached(key_of("compile-dynamic time", net=name, rows=TIMED, rounds=rounds), make)[1]


def drawn(name: str, count: int) -> tuple[nn.Module, list[Any]]:
    """A network and rows for it."""
    net, draw = dynamic(name)
    generator = seeded(0, "bench", name)
    return net, [draw(generator) for _ in range(count)]


def compared(name: str, inputs: int) -> dict[str, Any]:
    """One network compiled and compared: figures, or the reason it was not compiled."""
    one_thread()
    warnings.simplefilter("ignore")
    net, rows = drawn(name, inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            begun = time.process_time()
            family = load(compiled(net, Path(folder) / "net", example=rows[0]))
            seconds = time.process_time() - begun
            taken = (deciding_free if family.signature.lengths else deciding)(net, rows[0])
            proof = prove(taken, net, family, rows)
        except PliantError as error:
            return {"compiled": 0, "mismatches": 0, "reason": str(error)}
        return {"compiled": 1, "compile_s": seconds, "mismatches": proof.mismatches + proof.forced_mismatches,
                "near": proof.near, "edges": proof.edges, "covered": proof.covered,
                "states": len(family.program.states), "largest": proof.largest}  # fmt: skip


def speed(net: nn.Module, family: Family, rows: list[Any], rounds: int) -> dict[str, float]:
    """CPU seconds of eager and torch.compile over ours."""
    feeds = [arrays(row) for row in rows]
    other: Callable[[Any], Any] | None = torch.compile(net)
    with torch.no_grad():
        try:
            for row in rows:
                assert other is not None  # for the type checker
                other(row)
        except Exception:  # whatever torch.compile fails of, it is left out then
            other = None
        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda: [family.run(feed) for feed in feeds],
            "eager": lambda: [net(row) for row in rows],
        }
        if other is not None:
            calls["compile"] = lambda: [other(row) for row in rows]
        interleaved(calls, 2)
        gc.disable()
        times = {key: statistics.median(each) for key, each in interleaved(calls, rounds).items()}
        gc.enable()
    return {f"x_{key}": times[key] / times["ours"] for key in times if key != "ours"}


def host_us(repeats: int = 200) -> float:
    """Microseconds per state beyond the onnxruntime calls, on the network with the smallest blocks."""
    one_thread()
    net, draw = dynamic("fixed_point")
    row = draw(seeded(0, "bench", "host"))
    with tempfile.TemporaryDirectory() as folder:
        family = load(compiled(net, Path(folder) / "net", example=row))
    stepper = family._executor.stepper
    calls: list[tuple[Any, dict[str, Any], list[str]]] = []
    values: list[Any] = [row.numpy()]
    _, way = family.trace(row.numpy())
    for state, side in way:
        block = stepper.block(state)
        feeds = {name: values[place] for place, name in block.inputs}
        if block.run is not None:
            calls.append((block.run, feeds, block.names))
            values = values + block.run(block.names, feeds, None)
        values = [values[item] if type(item) is int else item for item in block.edges[side][1]]

    def alone() -> None:
        for run, feeds, names in calls:
            run(names, feeds, None)

    times = interleaved({"all": lambda: stepper.run(0, [row.numpy()]), "alone": alone}, repeats)
    return (min(times["all"]) - min(times["alone"])) / (len(way) + 1) * 1e6


def forty(blocks: int) -> float:
    """CPU seconds of compiling a network of so many gated blocks, proof included.

    In a process where torch.compile was never used: what it leaves behind makes whatever comes after it slower.
    """
    one_thread()
    torch.manual_seed(0)
    nets = [SkipNet(2).eval(), SkipNet(blocks).eval()]  # the first one loads what every compilation needs
    with tempfile.TemporaryDirectory() as folder:
        for number, net in enumerate(nets):
            begun = time.process_time()
            compiled(net, Path(folder) / str(number), example=torch.randn(1, 3, 32, 32))
    return time.process_time() - begun
