"""Probes: small ONNX graphs whose times describe a machine, and the description that comes out of measuring them.

    probes.json   := {format, version, probes: [probe]}
    probe         := {name, role, file, sha256, text}                  beside the .onnx files
    *.hardware    := {format, version, machine, threads, noise, seconds, measured: [reading]}
    reading       := {name, role, text, median_ms, iqr_ms}

`role` is operator (one operator), whole (a whole network) or check (a whole network that is measured last, to see how
well it can be predicted from the others). `text` says what the graph computes; it is handed on as it is.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pliant_runtime.errors import ArtifactError
from pliant_runtime.jsonish import MAX_BYTES, Node, parse
from pliant_runtime.machine import machine
from pliant_runtime.sessions import new_session
from pliant_runtime.timing import Comparison, compare

PROBES_FORMAT, DESCRIPTION_FORMAT, VERSION = "pliant-probes", "pliant-hardware", 1
PROBES = "probes.json"
ROLES = ("operator", "whole", "check")
_NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """A graph to measure.

    Args:
        name: unique.
        role: one of `ROLES`.
        graph: a serialized ONNX model; free dimensions count as 1.
        text: what it computes.
    """

    name: str
    role: str
    graph: bytes
    text: str


@dataclass(frozen=True)
class Reading:
    """What a probe took, in milliseconds: see `pliant_runtime.timing.Latency`."""

    name: str
    role: str
    text: str
    median_ms: float
    iqr_ms: float


@dataclass(frozen=True)
class Description:
    """What measuring the probes found.

    Args:
        machine: in words.
        threads: that the graphs ran on.
        noise: relative difference of whole networks below which the measurement cannot tell them apart.
        seconds: that it took.
        measured: one reading for each probe.
    """

    machine: str
    threads: int
    noise: float
    seconds: float
    measured: tuple[Reading, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `read_description` is the inverse."""
        return {"format": DESCRIPTION_FORMAT, "version": VERSION, **asdict(self)}

    def digest(self) -> str:
        """SHA-256 of its content, in hex."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the description as JSON, whole or not at all."""
        return _write(Path(path), json.dumps(self.to_dict(), indent=1).encode() + b"\n")


def write_probes(probes: list[Probe], folder: str | Path) -> Path:
    """Write a folder that `read_probes` takes, also on another machine.

    Raises:
        ValueError: no probes, two with one name, or an unknown role.
    """
    if not probes or len({probe.name for probe in probes}) != len(probes):
        raise ValueError("give at least one probe, and each name once")
    listed = []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, probe in enumerate(probes):
        if probe.role not in ROLES:
            raise ValueError(f"the role of a probe is one of {', '.join(ROLES)}, got {probe.role!r}")
        file = f"{number:04d}.onnx"
        _write(folder / file, probe.graph)
        digest = hashlib.sha256(probe.graph).hexdigest()
        listed.append({"name": probe.name, "role": probe.role, "file": file, "sha256": digest, "text": probe.text})
    content = {"format": PROBES_FORMAT, "version": VERSION, "probes": listed}
    _write(folder / PROBES, json.dumps(content, indent=1).encode() + b"\n")
    return folder


def read_probes(folder: str | Path) -> list[Probe]:
    """The probes of a folder, every graph checked against its hash before anything runs.

    Raises:
        ArtifactError: files that are missing or damaged, or of another format.
    """
    members = _opened(Path(folder) / PROBES, PROBES_FORMAT, ("probes",))
    found = members["probes"].list(lambda node: _probe(node, Path(folder)), least=1, most=10_000)
    if len({probe.name for probe in found}) != len(found):
        members["probes"].fail("has a name twice")
    return found


def _probe(node: Node, folder: Path) -> Probe:
    members = node.object(need=("name", "role", "file", "sha256", "text"))
    file = members["file"].file_name()
    graph = _read(folder / file)
    if hashlib.sha256(graph).hexdigest() != members["sha256"].hash():
        raise ArtifactError(file, "is not the file that the probes were written with: its SHA-256 differs")
    return Probe(members["name"].text(200), members["role"].choice(ROLES), graph, members["text"].text(1_000_000))


def read_description(path: str | Path) -> Description:
    """A description that `Description.save` wrote.

    Raises:
        ArtifactError: a file that is missing, damaged or of another format.
    """
    members = _opened(Path(path), DESCRIPTION_FORMAT, ("machine", "threads", "noise", "seconds", "measured"))
    return Description(
        members["machine"].text(1000),
        members["threads"].integer(1, 4096),
        _positive(members["noise"]),
        _positive(members["seconds"]),
        tuple(members["measured"].list(_reading, least=1, most=10_000)),
    )


def _reading(node: Node) -> Reading:
    members = node.object(need=("name", "role", "text", "median_ms", "iqr_ms"))
    name, role = members["name"].text(200), members["role"].choice(ROLES)
    median, spread = _positive(members["median_ms"]), _positive(members["iqr_ms"], least=0.0)
    return Reading(name, role, members["text"].text(1_000_000), median, spread)


def _positive(node: Node, least: float = 1e-9) -> float:
    value = node.number()
    if value < least:
        node.fail(f"must be at least {least:g}, got {value!r}")
    return value


def _opened(path: Path, format: str, need: tuple[str, ...]) -> dict[str, Node]:
    node = parse(_read(path, MAX_BYTES), path.name)
    members = node.object(need=("format", "version", *need))
    members["format"].choice((format,))
    version = members["version"].integer(1)
    if version != VERSION:
        members["version"].fail(f"is {version}; this runtime reads version {VERSION}")
    return members


def _read(path: Path, most: int = 1 << 31) -> bytes:
    try:
        if path.stat().st_size > most:
            raise ArtifactError(path.name, f"is larger than {most} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read ({error.strerror})") from error


def _write(path: Path, content: bytes) -> Path:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
    return path


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(
    probes: list[Probe], *, threads: int = 1, seconds: float = 50.0, told: Callable[[str], None] = lambda line: None
) -> Description:
    """Time all probes: operators side by side, then whole networks, then those that check.

    Args:
        probes: at least one whole network and one that checks.
        threads: that the graphs may use.
        seconds: about how long timing takes in all.
        told: takes a line before each part.

    Raises:
        ValueError: no whole network or none that checks.
        ArtifactError: a graph that onnxruntime cannot run here.
    """
    began = time.perf_counter()
    parts = {role: [probe for probe in probes if probe.role == role] for role in ROLES}
    for role in ("whole", "check"):
        if not parts[role]:
            raise ValueError(f"the probes hold no network of the role {role!r}; write them again")
    readings: list[Reading] = []
    noise = 0.0
    for role, share in (("operator", 0.4), ("whole", 0.35), ("check", 0.25)):
        if parts[role]:
            told(f"{len(parts[role])} probes of the role {role}, about {share * seconds:.0f} s")
            found = _timed(parts[role], threads, share * seconds)
            noise = max(noise, found.noise) if role != "operator" else noise
            for probe in parts[role]:
                latency = found[probe.name]
                readings.append(Reading(probe.name, role, probe.text, latency.median_ms, latency.iqr_ms))
    return Description(machine(), threads, noise, time.perf_counter() - began, tuple(readings))


def _timed(probes: list[Probe], threads: int, seconds: float) -> Comparison:
    calls = {probe.name: _call(probe, threads) for probe in probes}
    return compare(calls, threads=threads, rounds=200, seconds=seconds)


def _call(probe: Probe, threads: int) -> Callable[[], Any]:
    try:
        session = new_session(probe.graph, threads=threads)
        feeds = _feeds(session, probe.name)
        names = [output.name for output in session.get_outputs()]
        session.run(names, feeds)
    except ArtifactError:
        raise
    except Exception as error:  # onnxruntime raises its own kinds
        raise ArtifactError(probe.name, f"does not run here ({str(error).splitlines()[0][:300]})") from error
    return lambda: session.run(names, feeds)


def _feeds(session: ort.InferenceSession, name: str) -> Mapping[str, Any]:
    """Random numbers; ones for whole numbers, which may be places in a table."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        if value.type not in _NUMPY:
            raise ArtifactError(name, f"takes a {value.type}, which probes do not")
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
        kind = np.dtype(_NUMPY[value.type])
        feeds[value.name] = rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.ones(shape, dtype=kind)
    return feeds
