"""`serve`, `simulate` and `load`: what both command lines, `pliant` and `pliant-runtime`, offer."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant_runtime.errors import ArtifactError
from pliant_runtime.serving.controller import POLICIES, Settings
from pliant_runtime.serving.trace import PROFILES, Phase, Sample, profile

Json = dict[str, Any]
Say = Callable[[str], None]
EXTRA = "serving needs FastAPI, uvicorn and prometheus-client: pip install 'pliant-runtime[serve]'"


def serve(
    artifact: Path, *, slo_ms: float, host: str = "127.0.0.1", port: int = 8000, workers: int = 1,
    policy: str = "adaptive", drain_s: float = 1.0, say: Say = print,
) -> Json:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C.

    Args:
        artifact: its folder.
        slo_ms: the promise: milliseconds from arrival to answer.
        host, port: where to listen.
        workers: processes that share the memory of the networks.
        policy: rule that chooses sub-networks.
        drain_s: seconds to go on serving after SIGTERM.
        say: is given the line that says where clients may connect.

    Raises:
        ArtifactError, ValueError, OSError: as `workers.serve`.
        ModuleNotFoundError: the extra `serve` is not installed.
    """
    try:
        from pliant_runtime.serving.workers import Options
        from pliant_runtime.serving.workers import serve as run
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {EXTRA}") from error

    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    settings = Settings(slo_s=slo_ms / 1e3)
    options = Options(artifact, settings, host=host, port=port, workers=workers, policy=policy, drain_s=drain_s)
    status = run(
        options, told=lambda address: say(f"serving at {address} (live page) and {address}/v2; Ctrl-C ends it")
    )
    return {"status": status}


def simulate(
    artifact: Path, *, slo_ms: float, rows: int = 1, lanes: int = 1, noise: str = "busy", svg: Path | None = None,
    seed: int = 0, say: Say = print,
) -> Json:  # fmt: skip
    """What load can this machine hold? Measures the artifact here, then runs the server's controller in a simulation.

    Args:
        artifact: its folder, or a latency table written by `--json` (the `table` in it) before.
        slo_ms: the promise.
        rows: samples per request.
        lanes: batches that run at once, such as one per worker process.
        noise: `busy` (30 % slower on average, and a core stolen once per second) or `quiet` (as measured).
        svg: write a plot there.
        seed: of arrivals and noise.
        say: is given the lines of the table.

    Raises:
        ArtifactError: the artifact is damaged.
        ValueError: a table, a noise or numbers that make no sense.
    """
    from pliant_runtime.serving.model import open_model
    from pliant_runtime.serving.simulate import BUSY, QUIET, answer, compared
    from pliant_runtime.serving.table import Table

    kinds = {"busy": BUSY, "quiet": QUIET}
    if noise not in kinds:
        raise ValueError(f"no noise {noise!r}; there are {', '.join(kinds)}")
    if rows < 1 or lanes < 1:
        raise ValueError(f"rows and lanes must be at least 1, got {rows} and {lanes}")
    settings = Settings(slo_s=slo_ms / 1e3, lanes=lanes)
    if artifact.is_file():
        data = json.loads(artifact.read_text())
        table = Table.from_dict(data.get("table", data))
    else:
        table = open_model(artifact, slo_s=settings.slo_s).table
    found = answer(table, settings, rows=rows, noise=kinds[noise], seed=seed)
    phases = profile("step", rate=found["largest_alone"], seconds=max(2.0, 60 * settings.slo_s))
    found["step"] = compared(table, settings, phases, rows=rows, noise=kinds[noise], seed=seed)
    for line in simulation_text(found):
        say(line)
    if svg is not None:
        svg.write_text(simulation_plot(found))
        say(f"plot: {svg}")
    return found


def load(
    url: str, *, name: str = "step", rate: float | None = None, seconds: float = 10.0, rows: int = 1,
    rules: Sequence[str] = ("server",), svg: Path | None = None, say: Say = print,
) -> Json:  # fmt: skip
    """Load a server, open loop, and tell what came back.

    Args:
        url: such as http://127.0.0.1:8000.
        name: of the profile.
        rate: requests per second that the profile's multiples refer to; by default what the largest alone can answer.
        seconds: length of each phase.
        rows: samples per request.
        rules: who chooses the sub-network, compared one after the other.
        svg: write a plot of latencies there.
        say: is given the lines of the table.

    Raises:
        ValueError: an unknown profile or rule, or numbers that make no sense.
        OSError: nobody answers at this address.
    """
    from pliant_runtime.serving.load import RULES

    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"no rule {unknown[0]!r}; there are {', '.join(RULES)}")
    found, samples = asyncio.run(_loaded(url, name, rate, seconds, rows, rules))
    for line in load_text(found):
        say(line)
    if svg is not None:
        svg.write_text(load_plot(found, samples))
        say(f"plot: {svg}")
    return found


async def _loaded(
    url: str, name: str, rate: float | None, seconds: float, rows: int, rules: Sequence[str]
) -> tuple[Json, dict[str, list[Sample]]]:
    from pliant_runtime.serving.load import Client, discover, drive, told

    client = Client(url)
    target = await discover(client)
    unit = target.capacity(rows) if rate is None else rate
    phases: list[Phase] = profile(name, rate=unit, seconds=seconds)
    samples = {rule: await drive(client, target, phases, rows=rows, rule=rule) for rule in rules}
    await client.close()
    return {
        "url": url, "model": target.name, "profile": name, "rate": unit, "rows": rows, "seconds": seconds,
        "slo_ms": float(target.stats["slo_s"]) * 1e3,
        "rules": {rule: told(found, phases, target) for rule, found in samples.items()},
    }, samples  # fmt: skip


# -- text and plots ---------------------------------------------------------------------------------------------------

COLUMNS = ("offered", "shed", "failed", "p50_ms", "p99_ms", "in_slo_of_offered", "quality")


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table as lines of text."""
    cells = [[*map(_cell, row)] for row in (head, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in cells]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _figures(found: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    return [[name, *(each[column] for column in COLUMNS)] for name, each in found.items()]


def simulation_text(found: Json) -> list[str]:
    """The answer of a simulation for people."""
    alone = found["largest_alone"]
    lines = [
        f"promise {found['slo_ms']:g} ms, {found['rows']} rows a request, dynamic range {found['dynamic_range']:.3g}x",
        "highest load held (99.5 % of all requests in time):",
    ]
    rows = [[name, rate, rate / alone] for name, rate in found["capacity"].items()]
    lines += grid(("policy", "requests/s", "x largest"), rows)
    lines += ["", f"adaptive, by load (1 = {alone:.4g} requests/s, what the largest alone computes):"]
    loads = [
        [f"{each['load']:g}", *(each[c] for c in COLUMNS), "yes" if each["held"] else "no"] for each in found["loads"]
    ]
    lines += grid(("load", *COLUMNS, "held"), loads)
    if "step" in found:
        lines += ["", "step of 0.5 / 3 / 0.5:", *grid(("policy", *COLUMNS), _figures(found["step"]))]
    return lines


def simulation_plot(found: Json) -> str:
    """Quality, p99 and share in time against the load."""
    from pliant_runtime.serving.plot import chart, stacked

    def line(key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        return [(each["rate"], each[key] * factor) for each in found["loads"] if each[key] is not None]

    across = "requests per second"
    return stacked(
        [
            chart("Quality delivered", {"adaptive": line("quality")}, x=across, y="quality", log_x=True),
            chart("Latency", {"p50": line("p50_ms"), "p99": line("p99_ms")}, x=across, y="ms", log_x=True,
                  limit=("promise", found["slo_ms"])),
            chart("Answered in time", {"of offered": line("in_slo_of_offered", 100)}, x=across, y="%", log_x=True),
        ]
    )  # fmt: skip


def load_text(found: Json) -> list[str]:
    """The figures of a load for people."""
    head = f"profile {found['profile']} at {found['rate']:.4g} requests/s of {found['rows']} rows"
    lines = [f"{head}, promise {found['slo_ms']:g} ms", *grid(("rule", *COLUMNS), _figures(found["rules"]))]
    for rule, figures in found["rules"].items():
        shares = ", ".join(f"{number}: {share:.0%}" for number, share in figures["subnets"].items())
        lines.append(f"{rule}: sub-networks {shares or 'none'}")
    return lines


def load_plot(found: Json, samples: Mapping[str, Sequence[Sample]]) -> str:
    """Every answer as a dot: when it was due, and how long it took."""
    from pliant_runtime.serving.plot import chart

    lines = {
        rule: [(one.at, one.latency * 1e3) for one in each[:: max(1, len(each) // 4000)] if one.outcome == "answered"]
        for rule, each in samples.items()
    }
    return chart(f"Latency, profile {found['profile']}", lines, x="seconds", y="ms", log_y=True, dots=True,
                 limit=("promise", found["slo_ms"]))  # fmt: skip


# -- the command line of the runtime ----------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """`pliant-runtime serve|simulate|load`; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="pliant-runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve", help="serve an artifact")
    server.add_argument("artifact", type=Path)
    server.add_argument("--slo-ms", type=float, required=True)
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--workers", type=int, default=1)
    server.add_argument("--policy", default="adaptive", choices=POLICIES)
    server.add_argument("--drain-s", type=float, default=1.0)
    simulation = commands.add_parser("simulate", help="what load can this machine hold?")
    simulation.add_argument("artifact", type=Path)
    simulation.add_argument("--slo-ms", type=float, required=True)
    simulation.add_argument("--rows", type=int, default=1)
    simulation.add_argument("--lanes", type=int, default=1)
    simulation.add_argument("--noise", default="busy", choices=("busy", "quiet"))
    simulation.add_argument("--svg", type=Path)
    loader = commands.add_parser("load", help="load a server")
    loader.add_argument("url")
    loader.add_argument("--profile", dest="name", default="step", choices=tuple(PROFILES))
    loader.add_argument("--rate", type=float)
    loader.add_argument("--seconds", type=float, default=10.0)
    loader.add_argument("--rows", type=int, default=1)
    loader.add_argument("--rules", type=lambda text: tuple(text.split(",")), default=("server",))
    loader.add_argument("--svg", type=Path)
    for each in (simulation, loader):
        each.add_argument("--json", action="store_true", help="print JSON")
    options = vars(parser.parse_args(words))
    command, as_json = options.pop("command"), options.pop("json", False)
    options["say"] = _whispered if as_json else print
    run = {"serve": serve, "simulate": simulate, "load": load}[command]
    try:
        found = run(**options)  # type: ignore[operator]
    except (ArtifactError, OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found, indent=1))
    return int(found.get("status", 0))


def _whispered(line: str) -> None:
    print(line, file=sys.stderr)
