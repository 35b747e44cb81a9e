"""`pliant probes`: what `pliant-runtime measure` times on another machine, so that one can search for it from here."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.cli.runs import RunConfig
from pliant.cli.tables import say
from pliant.core import PliantError, atomic_folder

if TYPE_CHECKING:
    from pliant.elastic import Elastic

Json = dict[str, Any]
FAMILY = "graph.json"
"""The file by which a folder that `Elastic.save` wrote is known."""


def open_family(folder: Path) -> "Elastic":
    """The family of a run folder, or one that `Elastic.save` wrote.

    Probes need no data, so a run whose data are elsewhere serves too.

    Raises:
        PliantError: neither, training that has not ended, or a compiled artifact, which holds no family any more.
    """
    from pliant.elastic import Elastic

    if (folder / "program.json").is_file():
        fix = "give the RUN it was compiled from"
        raise PliantError(
            "is a compiled artifact; probes are of the whole family, which it does not hold", where=str(folder), fix=fix
        )
    if not (folder / "config.json").is_file() and (folder / FAMILY).is_file():
        return Elastic.load(folder)
    RunConfig.load(folder)
    if not (folder / "model").exists():
        raise PliantError("training has not ended", where=str(folder), fix="give its `pliant train` command again")
    return Elastic.load(folder / "model")


def probes(run: Path, out: Path, *, operators: int, networks: int, checks: int, replace: bool, seed: int) -> Json:
    """Writes the probes of a family, and says what to do with them.

    Raises:
        ValueError: more sub-networks than the space has, or fewer than a description needs.
        PliantError: no family at `run`, something at `out` already, or a sub-network that cannot be exported.
    """
    from pliant.export import ProbeSettings, probe_family
    from pliant_runtime.probes import PROBES, read_probes

    settings = ProbeSettings(operators=operators, networks=networks, checks=checks, seed=seed)
    if out.exists() and not (replace and (out / PROBES).is_file()):
        fix = "choose another --out" + (" or give --replace" if (out / PROBES).is_file() else "")
        raise PliantError("exists already", where=str(out), fix=fix)
    net = open_family(run)
    if net.space.size < networks + checks:
        raise ValueError(
            f"the family has {net.space.size} sub-networks, fewer than --networks {networks} and --checks {checks}"
            " together; ask for fewer"
        )
    say(f"exporting {networks + checks} sub-networks and their operators")
    with atomic_folder(out, replace=replace) as aside:
        probe_family(net, aside, settings=settings)
    found = read_probes(out)
    size = sum(file.stat().st_size for file in out.iterdir())
    say(f"{out}: {len(found)} probes, {size / 1e6:.1f} MB; take the folder to the other machine and give there:")
    say("  pliant-runtime measure PROBES --out board.hardware.json --threads 1")
    known = (run / "config.json").is_file()
    then = f"pliant search {run} --hardware board.hardware.json" if known else 'pliant.hardware("board.hardware.json")'
    say(f"bring that file back, and search for that machine with\n  {then}")
    counts = {role: sum(probe.role == role for probe in found) for role in ("operator", "whole", "check")}
    return {"probes": str(out), "bytes": size, "counts": counts}
