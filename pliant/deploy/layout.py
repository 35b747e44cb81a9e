"""How the sub-networks of an artifact share their weights: as slices or as shells, whichever serves better here.

Slices: the weights are stored once, every sub-network has a graph of its own, and its weights are cut when it is
loaded. It runs exactly as fast as an artifact of its own, but every loaded sub-network has weights of its own in
memory. Shells: one graph holds them all, in the memory of the largest alone, for a few calls more per run.
Convolutions always go as slices: behind an `If` ONNX Runtime neither fuses them nor keeps their blocked layout.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from pliant.core import PliantError
from pliant.data import Dataset
from pliant.deploy.draft import Draft, calls
from pliant.deploy.pack import Packer
from pliant.deploy.plain_graph import Unfit
from pliant.deploy.program import shell_program_of, weight_bytes, write_program
from pliant.deploy.shelled import shelled
from pliant_runtime import Family, load

CHOICES = ("auto", "slices", "shells")
SLOWER, SLOWER_SINGLE = 1.15, 1.35
"""Shells may take so many times as long as slices, with eight rows and with one."""
_ROWS = (1, 8)


@dataclass(frozen=True)
class Laid:
    """An artifact in its folder, one form chosen.

    Args:
        program: its program.
        family: it, loaded.
        why: the form and the reason, for a reader.
        range: per number of rows the cost of the dearest sub-network over that of the cheapest.
    """

    program: dict[str, Any] = field(repr=False)
    family: Family
    why: str
    range: Mapping[int, float]


def lay_out(
    wanted: str, program: dict[str, Any], folder: Path, *, net: nn.Module, drafts: Sequence[Draft],
    batches: list[Any] | None, data: Dataset | None, seed: int,
) -> Laid:  # fmt: skip
    """Choose the form of an artifact that lies in its folder as slices.

    Raises:
        PliantError: shells are wanted and cannot be.
    """
    slices = load(folder)
    if wanted == "slices" or (wanted == "auto" and len(drafts) < 2):
        why = "asked for" if wanted == "slices" else "there is one sub-network"
        return _as_slices(program, slices, drafts, why, {})
    with tempfile.TemporaryDirectory() as place:
        aside = Path(place)
        try:
            made = shelled(net, drafts, batches=batches, seed=seed)
            other = shell_program_of(program["name"], list(drafts), made, Packer({}), data, aside)
        except Unfit as reason:
            if wanted == "shells":
                fix = 'compile with layout="slices", or with configs that keep these units whole'
                raise PliantError(f"the sub-networks cannot be shells of one graph: {reason}", fix=fix) from reason
            return _as_slices(program, slices, drafts, f"no shells: {reason}", {})
        write_program(other, aside)
        shells = load(aside)
        times = {rows: fastest({"slices": slices, "shells": shells}, drafts, rows) for rows in _ROWS}
        figures = _compared(times, program, other)
        good = figures["latency_ratio_b8"] <= SLOWER and figures["latency_ratio_b1"] <= SLOWER_SINGLE
        told = (
            f"shells take {figures['latency_ratio_b8']:.2f} times as long as slices with 8 rows, "
            f"{figures['latency_ratio_b1']:.2f} times with 1, and need {figures['weights_ratio']:.2f} of the memory"
        )
        if not good and wanted == "auto":
            return _as_slices(program, slices, drafts, told, figures, times)
        for path in [*folder.iterdir()]:
            path.unlink()
        for path in aside.iterdir():
            shutil.copy2(path, folder / path.name)
    why = told if wanted == "auto" else f"asked for; {told}"
    switch = {"name": made.switch, "size": made.size}
    other["layout"] = {"form": "shells", "why": why, "measured": figures, "switch": switch}
    return Laid(other, load(folder), f"shells ({why})", _ranges({rows: each["shells"] for rows, each in times.items()}))


def _as_slices(
    program: dict[str, Any], family: Family, drafts: Sequence[Draft], why: str, figures: Mapping[str, float],
    times: Mapping[int, Mapping[str, Sequence[float]]] | None = None,
) -> Laid:  # fmt: skip
    if times is None:
        times = {rows: fastest({"slices": family}, drafts, rows) for rows in _ROWS}
    program["layout"] = {"form": "slices", "why": why[:1000], "measured": dict(figures), "switch": None}
    return Laid(program, family, f"slices ({why})", _ranges({rows: each["slices"] for rows, each in times.items()}))


def fastest(
    families: Mapping[str, Family], drafts: Sequence[Draft], rows: int, *, rounds: int = 15, seconds: float = 3.0
) -> dict[str, list[float]]:
    """CPU seconds of every sub-network in each form: the least of interleaved rounds.

    Args:
        families: the artifact in one or several forms.
        drafts: its sub-networks.
        rows: of one call.
        rounds: most rounds.
        seconds: after so many no further round starts, once there are five.
    """
    inputs = calls(drafts[0], rows)
    best = {name: [float("inf")] * len(drafts) for name in families}
    begun = time.process_time()
    for done in range(rounds + 1):
        if done > 5 and time.process_time() - begun > seconds:
            break
        for entry in range(len(drafts)):
            for name, family in families.items():
                taken = _seconds(lambda f=family, n=entry: f.run(inputs, entry=n, preprocessed=True))  # type: ignore[misc]
                if done:  # the first round loads
                    best[name][entry] = min(best[name][entry], taken)
    return best


def _seconds(function: Callable[[], Any]) -> float:
    begun = time.process_time()
    function()
    return max(time.process_time() - begun, 1e-7)


def _ranges(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {rows: max(each) / min(each) for rows, each in times.items()}


def _compared(
    times: Mapping[int, Mapping[str, Sequence[float]]], slices: Mapping[str, Any], shells: Mapping[str, Any]
) -> dict[str, float]:
    """What is measured of both forms: ratios of shells to slices."""
    figures = {}
    for rows, each in times.items():
        ratios = [a / b for a, b in zip(each["shells"], each["slices"], strict=True)]
        figures[f"latency_ratio_b{rows}"] = round(median(ratios), 4)
    sizes = [weight_bytes(program) for program in (shells, slices)]
    figures["weights_ratio"] = round(sizes[0] / sizes[1], 4)
    disk = [sum(fact["bytes"] for fact in program["files"].values()) for program in (shells, slices)]
    figures["disk_ratio"] = round(disk[0] / disk[1], 4)
    return figures
