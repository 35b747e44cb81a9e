"""`pliant-runtime measure PROBES --out FILE`: describe this machine by the time that small graphs take on it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pliant_runtime.errors import ArtifactError
from pliant_runtime.probes import measure, read_probes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 damaged probes or a graph that does not run here)."""
    parser = argparse.ArgumentParser(prog="pliant-runtime measure", description=__doc__)
    parser.add_argument("probes", type=Path, help="folder with probes.json, written by pliant on any machine")
    parser.add_argument("--out", type=Path, required=True, help="the description, such as pi4.hardware.json")
    parser.add_argument("--threads", type=int, default=1, help="threads the networks will run on")
    parser.add_argument("--seconds", type=float, default=50.0, help="about how long to measure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    if not 1 <= options.threads <= cores:
        parser.error(f"--threads must be from 1 to {cores}, got {options.threads}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be above 0, got {options.seconds}")
    try:
        found = measure(
            read_probes(options.probes),
            threads=options.threads,
            seconds=options.seconds,
            told=lambda line: print(line, file=sys.stderr, flush=True),
        )
        found.save(options.out)
    except (ArtifactError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = {
        "written": str(options.out),
        "machine": found.machine,
        "probes": len(found.measured),
        "noise": round(found.noise, 4),
        "seconds": round(found.seconds, 1),
    }
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    return 0
