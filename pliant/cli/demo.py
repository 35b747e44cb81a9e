"""`pliant demo`: the whole path on the embedded digits, each step through the command a user would give."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.cli import commands
from pliant.cli.runs import RunConfig
from pliant.cli.tables import say, table
from pliant.core import Config

if TYPE_CHECKING:
    from pliant.data import Dataset
    from pliant.elastic import Elastic
    from pliant.search import Front

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much the demo does."""

    epochs: int
    trials: int
    picks: int
    width: int
    blocks: tuple[int, ...]


FULL = Plan(epochs=14, trials=30, picks=5, width=32, blocks=(2, 2, 2))
SHORT = Plan(epochs=3, trials=6, picks=3, width=8, blocks=(1, 1, 1))


@contextmanager
def _step(number: int, what: str) -> Iterator[None]:
    say(f"\n[{number}/5] {what}")
    begun = time.perf_counter()
    yield
    say(f"      {time.perf_counter() - begun:.1f} s")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks as small as these gain nothing from a second thread, and lose much where others use the processor."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def run_demo(out: Path, *, short: bool = False, seed: int = 0) -> Json:
    """Trains, searches, compiles, runs and reports in one folder, which is a run folder like any other.

    Given again it goes on where it was stopped, and what is done is not done twice.

    Raises:
        PliantError: the folder holds something else, or was begun with other options.
    """
    from pliant.report import pareto_svg
    from pliant.search import Front

    plan = SHORT if short else FULL
    begun = time.perf_counter()
    config = RunConfig(
        model="resnet",
        args={"width": plan.width, "blocks": list(plan.blocks)},
        data="digits",
        epochs=plan.epochs,
        lr=3e-3,
        batch_size=64,
        seed=seed,
    )
    with _step(1, "train one residual network that contains many (1,797 handwritten digits)"):
        trained = commands.train(out, config, hint=False)
    with _step(2, f"measure {plan.trials} of its {trained['sub_networks']:,} sub-networks, on one thread"):
        commands.search(
            out, hardware="cpu", threads=1, objectives="accuracy,latency", trials=plan.trials, seed=seed, hint=False
        )
    net, dataset, _ = commands.open_run(out)
    picked = Front.load(out / "front.json").pick(plan.picks)
    artifact = out / "artifact"
    with _step(3, f"compile {len(picked)} of the front into one folder, weights stored once"):
        compile_once(net, dataset, picked, artifact)
    with _step(4, "load it with pliant_runtime (numpy and onnxruntime, no torch) and run the validation images"):
        rows = run_compiled(artifact, net, dataset)
        _show(rows)
    with _step(5, "write the report"):
        commands.report(out)
        pareto_svg(Front.load(out / "front.json"), out / "pareto.svg")
    seconds = time.perf_counter() - begun
    say(f"\ndone in {seconds:.0f} s. Look at {out / 'report.html'} and {out / 'pareto.svg'}, then try:")
    say(f"  pliant search {out} --trials {4 * plan.trials}          # goes on where it stopped")
    bound = f"{1.1 * picked[len(picked) // 2].values['latency_ms']:.2g}"
    say(f"  pliant compile {out} --best accuracy --where 'latency_ms<={bound}' --out small.pliant")
    say("  pliant train your_file.py:make_model --data your_data.npz --run runs/mine")
    return {
        "out": str(out),
        "seconds": seconds,
        "validation": trained["validation"],
        "artifact": str(artifact),
        "report": str(out / "report.html"),
        "networks": rows,
    }


def compile_once(net: "Elastic", dataset: "Dataset", picked: "Front", artifact: Path) -> None:
    """Compiles unless the artifact holds exactly these sub-networks already."""
    import pliant
    from pliant_runtime import load

    wanted = [dict(point.config) for point in picked]
    if artifact.exists() and [dict(entry.config) for entry in load(artifact).entries] == wanted:
        say("      compiled already")
        return
    pliant.compile(net, artifact, configs=picked, data=dataset, replace=True)


def run_compiled(artifact: Path, net: "Elastic", dataset: "Dataset") -> list[Json]:
    """Accuracy of every compiled sub-network on the validation images, through the runtime, and what was measured."""
    from pliant.report.contents import summarise
    from pliant_runtime import load

    family = load(artifact)
    images, labels = dataset.val.inputs.numpy(), dataset.val.targets.numpy()
    rows = []
    for number, entry in enumerate(family.entries):
        answers = family.run(images, entry=number, preprocessed=True).argmax(axis=1)
        rows.append(
            {
                "keeps": summarise(Config(entry.config), net.space),
                "config": dict(entry.config),
                "accuracy": float((answers == labels).mean()),
                **{key: entry.measured[key] for key in ("latency_ms", "parameters", "flops")},
            }
        )
    return rows


def _show(rows: list[Json]) -> None:
    from pliant.report.chart import number, percent

    cells = [
        [
            row["keeps"],
            percent(row["accuracy"]),
            f"{row['latency_ms']:.3f}",
            number(row["parameters"]),
            number(row["flops"]),
        ]
        for row in rows
    ]
    say(table(["keeps", "accuracy", "ms through the runtime", "parameters", "FLOPs"], cells))
