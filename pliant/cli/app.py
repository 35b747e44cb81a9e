"""Parsing, and what all commands share: `--json`, `--debug`, one-line errors and exit codes.

Commands return their result as JSON data and show it to people as they go. torch and the rooms are imported inside the
commands, so that `--help` and usage errors answer at once.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from pliant.cli.failures import INTERRUPTED, debugging, report_failure

Json = dict[str, Any]

app = typer.Typer(
    name="pliant",
    help="Networks that contain many networks: train once, get the right network for every device and budget.",
    epilog="Every command takes --json (one JSON object on stdout, nothing else) and --debug (full traceback).",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
EPILOG = "Also: --json, --debug."

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name in pliant.nets, file.py:factory or package.module:factory.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder written by `pliant train`.")]
Args = Annotated[list[str] | None, typer.Option("--arg", help="key=value for the factory; value is JSON. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Of weights, data split, training and search.")]


@app.command("demo", epilog=EPILOG)
def _demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    short: Annotated[bool, typer.Option("--short", help="Fewer epochs and trials, for automatic tests.")] = False,
    seed: Seed = 0,
) -> Json:
    """The whole path on real data, in about a minute."""
    from pliant.cli.demo import run_demo

    return run_demo(out, short=short, seed=seed)


@app.command("look", epilog=EPILOG)
def _look(
    model: Model,
    data: Annotated[str | None, typer.Option(help="Data name or path that gives the example input.")] = None,
    shape: Annotated[str | None, typer.Option(help="Shape of one input without batch, such as 1,28,28.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the network's diagram.")] = None,
    arg: Args = None,
    seed: Seed = 0,
) -> Json:
    """What bends in a network, what is rigid and why."""
    from pliant.cli.commands import look as command

    return command(model, data=data, shape=shape, args=arg or [], seed=seed, html=html)


@app.command("train", epilog=EPILOG)
def _train(
    model: Model,
    data: Annotated[str, typer.Option(help="Data name or path (npz, idx, csv, image folder).")],
    run: Annotated[Path, typer.Option(help="Run folder; an interrupted run goes on where it stopped.")],
    recipe: Annotated[str, typer.Option(help="Training recipe, a name in pliant.recipes.")] = "nested",
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 10,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by default the trainer's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step; by default the trainer's own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many samples per split.")] = None,
    arg: Args = None,
    seed: Seed = 0,
) -> Json:
    """Train a family of networks at once; resumes."""
    from pliant.cli.commands import train as command
    from pliant.cli.models import parse_args
    from pliant.cli.runs import RunConfig

    args = parse_args(arg or [])
    config = RunConfig(
        model=model,
        args=args,
        data=data,
        recipe=recipe,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
    )
    return command(run, config)


@app.command("search", epilog=EPILOG)
def _search(
    run: Run,
    hardware: Annotated[str, typer.Option(help="cpu, or the description of a machine (*.hardware.json).")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads [default: 1, or the description's].")] = None,
    objectives: Annotated[str, typer.Option(help="Such as accuracy, latency, memory, flops; comma-separated.")] = (
        "accuracy,latency"
    ),
    trials: Annotated[int, typer.Option(help="Sub-networks to evaluate in all, earlier ones included.")] = 60,
    seed: Seed = 0,
    searcher: Annotated[str, typer.Option(help="Such as ridge, nsga2, evolution, linas, mcts, smbo, tpe.")] = "ridge",
    workers: Annotated[str, typer.Option(help="Processes that measure at once, or ray.")] = "1",
    on_failure: Annotated[str, typer.Option(help="stop or skip, when an objective fails.")] = "stop",
) -> Json:
    """Find the Pareto front of a family; resumes."""
    from pliant.cli.commands import search as command
    from pliant.cli.commands import search_settings

    settings = search_settings(searcher, workers, on_failure)
    return command(
        run, hardware=hardware, threads=threads, objectives=objectives, trials=trials, seed=seed, settings=settings
    )


@app.command("compile", epilog=EPILOG)
def _compile(
    run: Run,
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    best: Annotated[str | None, typer.Option(help="Only the point that is best in this objective.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="A bound such as 'latency_ms<=2'. Repeatable.")] = None,
    pick: Annotated[int | None, typer.Option(help="Only this many points, spread over the front.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an artifact that is there.")] = False,
    layout: Annotated[str, typer.Option(help="How weights are shared: auto (measured), slices or shells.")] = "auto",
) -> Json:
    """Make one folder that runs without torch."""
    from pliant.cli.commands import compile_run as command

    return command(run, out, best=best, where=where or [], pick=pick, replace=replace, layout=layout)


@app.command("probes", epilog=EPILOG)
def _probes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a folder that Elastic.save wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the probes; take it to the other machine.")],
    operators: Annotated[int, typer.Option(help="Most single operators.")] = 120,
    networks: Annotated[int, typer.Option(help="Sub-networks to learn from.")] = 60,
    checks: Annotated[int, typer.Option(help="Sub-networks to state the error with.")] = 30,
    replace: Annotated[bool, typer.Option("--replace", help="Replace probes that are there.")] = False,
    seed: Seed = 0,
) -> Json:
    """Small graphs that tell another machine's speed."""
    from pliant.cli.probes import probes as command

    return command(run, out, operators=operators, networks=networks, checks=checks, replace=replace, seed=seed)


Promise = Annotated[float, typer.Option(help="Milliseconds from a request's arrival to its answer.")]
Artifact = Annotated[Path, typer.Argument(metavar="ART", help="Artifact written by `pliant compile`.")]
Svg = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot.")]
RowCount = Annotated[int, typer.Option(help="Samples per request.")]


@app.command("serve", epilog=EPILOG)
def _serve(
    artifact: Artifact,
    slo_ms: Promise,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(help="Processes; they share the memory of the networks.")] = 1,
    policy: Annotated[str, typer.Option(help="adaptive, largest, smallest or round_robin.")] = "adaptive",
    drain_s: Annotated[float, typer.Option(help="Seconds to go on serving after SIGTERM.")] = 1.0,
) -> Json:
    """Serve: larger sub-networks when idle, smaller under load."""
    from pliant.cli.tables import say
    from pliant.serve import serve as command

    return command(
        artifact, slo_ms=slo_ms, host=host, port=port, workers=workers, policy=policy, drain_s=drain_s, say=say
    )


@app.command("simulate", epilog=EPILOG)
def _simulate(
    artifact: Artifact,
    slo_ms: Promise,
    rows: RowCount = 1,
    lanes: Annotated[int, typer.Option(help="Batches that run at once, such as one per worker.")] = 1,
    noise: Annotated[str, typer.Option(help="busy (a machine that does other things too) or quiet.")] = "busy",
    svg: Svg = None,
    seed: Seed = 0,
) -> Json:
    """What load can this machine hold?"""
    from pliant.cli.tables import say
    from pliant.serve import simulate as command

    return command(artifact, slo_ms=slo_ms, rows=rows, lanes=lanes, noise=noise, svg=svg, seed=seed, say=say)


@app.command("load", epilog=EPILOG)
def _load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8000.")],
    profile: Annotated[str, typer.Option(help="constant, step, ramp or overload.")] = "step",
    rate: Annotated[float | None, typer.Option(help="Requests/s of load 1 [default: what the largest can].")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each phase.")] = 10.0,
    rows: RowCount = 1,
    rules: Annotated[str, typer.Option(help="server, largest, smallest, round_robin; several compared.")] = "server",
    svg: Svg = None,
) -> Json:
    """Load a server, open loop."""
    from pliant.cli.tables import say
    from pliant.serve import load as command

    names = tuple(name.strip() for name in rules.split(",") if name.strip())
    return command(url, name=profile, rate=rate, seconds=seconds, rows=rows, rules=names, svg=svg, say=say)


@app.command("report", epilog=EPILOG)
def _report(
    run: Run,
    separate: Annotated[
        int, typer.Option(help="Train this many points of the front alone first, to compare with; resumes.")
    ] = 0,
) -> Json:
    """Write RUN/report.html: front, losses, conditions; for an artifact of a network that decides ART.html."""
    from pliant.cli.commands import report as command

    return command(run, separate=separate)


@app.command("methods", epilog=EPILOG)
def _methods() -> Json:
    """The catalogue: method, paper, year, room, laws."""
    from pliant.cli.commands import methods as command

    return command()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 wrong input, 130 interrupted, 1 a bug.

    With `--json` the result, or `{"error": ...}`, is the only thing on stdout; everything else goes to stderr.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    stdout = sys.stdout
    command = typer.main.get_command(app)
    try:
        with redirect_stdout(sys.stderr if as_json else stdout):
            arguments = [word for word in words if word not in ("--json", "--debug")]
            result = command.main(arguments, prog_name="pliant", standalone_mode=False)
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit) or debugging(words):
            raise
        return report_failure(error, as_json=as_json, stdout=stdout)
    if result == INTERRUPTED:  # typer turns Ctrl-C into this code
        return report_failure(KeyboardInterrupt(), as_json=as_json, stdout=stdout)
    if isinstance(result, int):  # --help and other early exits return their code
        return result
    if as_json:
        print(json.dumps(result), file=stdout)
    return 0
