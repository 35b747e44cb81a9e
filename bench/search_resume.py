"""search-resume: a search that is killed (SIGKILL) at 20 random moments, beside the same search undisturbed.

A real family on Fashion-MNIST, validation accuracy and FLOPs, one process. At each kill the database is read: a figure
that is there was finished. Lost are finished figures that are not there at the end, repeated are those that the
objective was asked for again after they were finished. Both searches must end with the same front.

`python -m bench.search_resume RUN LOG TRIALS` is the search that is killed.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from bench import _families as families
from bench._common import ROOT, Outcome, one_thread
from bench.search_front import family
from pliant.core import Config
from pliant.learn import evaluate
from pliant.search import Front, Objective, SearchSettings, search
from pliant.search.measurements import Measurements

REQUIRED = ("kills", "lost_evaluations", "repeated_evaluations", "same_front")
KILLS, TRIALS, SEED = 20, 60, 0
IMAGES = 1000
MARK = "accuracy_logged"


def searched(run: Path, log: Path, trials: int) -> Front:
    """The search: every evaluation of accuracy leaves a line in the log when it begins."""
    one_thread()
    job = family()
    net: Any = families.trained(job)
    data = families.dataset(job.task)
    val = data.val.take(IMAGES)

    def accuracy(module: nn.Module, config: Config) -> float:
        with log.open("a") as file:
            file.write(config.to_json() + "\n")
        return evaluate(module, val)

    objectives = (Objective(MARK, accuracy, maximise=True), "flops")
    settings = SearchSettings(calibration_batches=4, progress=False)
    return search(net, data, objectives=objectives, n_trials=trials, run=run, settings=settings)


def started(run: Path, log: Path, trials: int) -> "subprocess.Popen[bytes]":
    """The same in a process of its own."""
    command = [sys.executable, "-m", "bench.search_resume", str(run), str(log), str(trials)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(run: Path) -> set[str]:
    """The configs whose accuracy is in the database."""
    path = run / "measurements.sqlite"
    if not path.exists():
        return set()
    base = Measurements(path)
    try:
        return {about["config"] for about in base.everything() if about["objective"] == MARK}
    finally:
        base.close()


def lines(log: Path) -> list[str]:
    """What was begun, in order."""
    return log.read_text().splitlines() if log.exists() else []


def kill_somewhere(process: "subprocess.Popen[bytes]", log: Path, chance: random.Random) -> bool:
    """Kill after a few more evaluations have begun, somewhere in the middle; False if it was done before."""
    begun = len(lines(log))
    wanted = begun + chance.randint(0, 3)  # none: in the middle of getting ready
    if wanted == begun:
        deadline = time.monotonic() + chance.uniform(0, 4)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
    while len(lines(log)) < wanted and process.poll() is None:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def disturbed(run: Path, log: Path, *, trials: int, kills: int, seed: int) -> dict[str, int]:
    """Kill the search again and again, then let it end; what was lost and what was repeated."""
    chance = random.Random(seed)
    counted = repeated = 0
    known: set[str] = set()
    seen = 0
    while counted < kills:
        if not kill_somewhere(started(run, log, trials), log, chance):
            break
        counted += 1
        begun = lines(log)
        repeated += sum(config in known for config in begun[seen:])
        seen, known = len(begun), finished(run) | known
    if started(run, log, trials).wait() != 0:
        raise RuntimeError("the search did not end well")
    repeated += sum(config in known for config in lines(log)[seen:])
    return {"kills": counted, "lost_evaluations": len(known - finished(run)), "repeated_evaluations": repeated}


def compared(folder: Path, *, trials: int, kills: int, seed: int) -> dict[str, Any]:
    """Both searches, and whether they end alike."""
    if started(folder / "calm", folder / "calm.log", trials).wait() != 0:
        raise RuntimeError("the search did not end well")
    figures = disturbed(folder / "run", folder / "run.log", trials=trials, kills=kills, seed=seed)
    calm, other = Front.load(folder / "calm"), Front.load(folder / "run")
    again = len(lines(folder / "run.log")) - len(lines(folder / "calm.log"))
    return {**figures, "same_front": int(calm == other), "trials": len(other.trials), "cut_off_evaluations": again}


def run() -> Outcome:
    """The whole row."""
    with tempfile.TemporaryDirectory() as folder:
        figures = compared(Path(folder), trials=TRIALS, kills=KILLS, seed=SEED)
    settings = {"trials": TRIALS, "network": family().what(), "validation_images": IMAGES}
    data = f"Fashion-MNIST ({family().task.data}), {IMAGES} validation images"
    return Outcome(figures, data, [SEED], settings=settings)


if __name__ == "__main__":
    searched(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
