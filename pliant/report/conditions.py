"""How and where the figures of a report were measured."""

import json
import platform
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pliant.core import PliantError, read_json
from pliant.data import Dataset
from pliant.search import Front

PACKAGES = ("pliant", "torch", "onnxruntime", "numpy")


def versions() -> str:
    """Versions of what the figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # running from a checkout that is not installed
            found.append(f"{name} (not installed)")
    return ", ".join(found)


def conditions(run: Path, front: Front, dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """Name and value of everything that was fixed while measuring, for the last table of the report."""
    rows = [("data", _data(dataset))]
    rows += [("note", note) for note in dataset.notes]
    if (run / "config.json").is_file():
        config = read_json(run / "config.json")
        training = [f"{name} {config[name]}" for name in ("recipe", "epochs", "lr", "batch_size", "limit", "seed")
                    if config.get(name) is not None]  # fmt: skip
        rows.append(("training", ", ".join(training)))
        if config.get("args"):
            rows.append(("network arguments", ", ".join(f"{key}={value}" for key, value in config["args"].items())))
    device = measured_on(run)
    if device:
        rows.append(("hardware", f"{device['name']}, {device['threads']} thread(s): {device['machine']}"))
    spreads = [point.spread["latency_ms"] for point in front if "latency_ms" in point.spread]
    if spreads:
        rows.append(("latency", f"median of repeated calls, batch 1; interquartile range up to {max(spreads):.3g} ms"))
    tied = sum(bool(point.ties) for point in front)
    if tied:
        rows.append(
            ("within noise", f"{tied} points differ from their neighbour by less than the measurement's spread")
        )
    rows.append(
        ("accuracy", "BatchNorm re-estimated on training data; the search saw validation data, test is read here")
    )
    rows.append(("versions", versions()))
    rows.append(("report written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")))
    return tuple(rows)


def measured_on(run: Path) -> dict[str, Any] | None:
    """What the latest latency of a run was measured on, from `measurements.sqlite`; None where there is none.

    Raises:
        PliantError: the file is no measurements file.
    """
    path = run / "measurements.sqlite"
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            found = base.execute("SELECT about FROM measurements ORDER BY rowid DESC").fetchall()
    except sqlite3.Error as error:
        raise PliantError(f"no file of measurements ({error})", where=str(path)) from error
    abouts = (json.loads(about) for (about,) in found)
    return next((about["of"]["hardware"] for about in abouts if about["objective"] == "latency_ms"), None)


def _data(dataset: Dataset) -> str:
    sizes = ", ".join(f"{count} {split}" for split, count in dataset.sizes.items())
    return f"{dataset.name}: {dataset.task}, {sizes} samples"
