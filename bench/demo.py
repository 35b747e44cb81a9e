"""demo: how long `pliant demo` takes, from a cold start, in a folder of its own.

The wall time of the whole command, imports included; the bar is 120 seconds.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench._common import Outcome
from pliant.core import PliantError

REQUIRED = ("seconds",)


def run() -> Outcome:
    """The whole row."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pliant.cli", "demo", "--out", str(Path(folder) / "demo")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise PliantError(f"pliant demo ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {"seconds": seconds, "demo_cpu_seconds": cpu}
    return Outcome(
        figures, "embedded 8 x 8 digits", [0], cpu_seconds=cpu, settings={"command": "pliant demo --out TMP"}
    )
