"""The program of an artifact, version 1: what may be in it, checked by hand before anything runs.

    program   := {format, version, name, sha256, signature, quality, conditions, entries, states, tensors, files, ...}
    signature := {inputs: [value], outputs: [value], call, preprocessing, classes, task, lengths}
    value     := {name, dtype, shape: [int | "N" | length | "?"]}  "N" is the batch, "?" depends on these in another way
    lengths   := {length: [least, most]}                           sizes of inputs that are free; older files have none
    entry     := {config: {knob: int | bool}, measured: {name: number}, start_state, check: check | null}
    check     := {inputs: [tensor], outputs: [tensor], tolerance}  random rows and what the trained network answered
    state     := {graph, inputs: [[parameter, name]], outputs: [name], initializers: [slice], max_threads, next}
    slice     := {name, tensor, ranges: null | [null | [[begin, end]]]}   per axis the runs kept, in order
    next      := {return: struct}
    struct    := {t: output} | {py: constant} | {list: [struct]} | {tuple: [struct]} | {dict: {name: struct}}
    tensor    := {name, dtype, shape, offset, nbytes, sha256}      a piece of weights.bin
    files     := {name: {sha256, bytes}}

A sub-network is a program of one state. A network that decides is one of many: its states have `params`, see
`pliant_runtime.states`, its program `steps` (how many states one row may visit), and shapes without "N" where its
inputs have no rows. Where lengths are free, `sizes` lists the names of further sizes that follow from them. `layout`
(see `pliant_runtime.layout`) says how weights are shared; older files have none.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pliant_runtime.jsonish import Node, parse
from pliant_runtime.layout import Layout, is_like, like, read_layout, read_on
from pliant_runtime.signature import DTYPES as DTYPES
from pliant_runtime.signature import Preprocessing as Preprocessing
from pliant_runtime.signature import Signature as Signature
from pliant_runtime.signature import Value as Value
from pliant_runtime.signature import read_signature
from pliant_runtime.states import Step, read_step

FORMAT = "pliant-artifact"
VERSION = 1
PROGRAM = "program.json"
WEIGHTS = "weights.bin"
ALIGNMENT = 64
_MEMBERS = ("format", "version", "name", "sha256", "signature", "quality", "conditions", "entries", "states", "tensors",
            "files")  # fmt: skip

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Quality:
    """Which measured figure says how good an entry is, and its direction."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Check:
    """Rows to try an entry with, what it must answer, and how far it may be off (relative to the largest answer)."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class Entry:
    """One sub-network: its config, what was measured (`latency_ms` is of one row), and the state it starts in."""

    config: Mapping[str, int | bool]
    measured: Mapping[str, float]
    start_state: int
    check: Check | None


@dataclass(frozen=True)
class Initializer:
    """A weight of a graph: a stored tensor, or per axis the runs of it that are kept."""

    name: str
    tensor: str
    ranges: tuple[Runs | None, ...] | None


@dataclass(frozen=True)
class State:
    """One graph with its weights, and what happens after it.

    `returns` is the structure handed back; states of programs that decide have a `step` instead, and no graph ("")
    where nothing is computed. `on` and `like`: see `pliant_runtime.layout`.
    """

    graph: str
    inputs: tuple[tuple[int, str], ...]
    outputs: tuple[str, ...]
    initializers: tuple[Initializer, ...]
    max_threads: int | None
    returns: Mapping[str, Any]
    step: Step | None = None
    on: tuple[int, ...] | None = None
    like: int | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor in weights.bin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class FileFact:
    """Hash and size a file must have."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Program:
    """A whole artifact, except for the bytes of graphs and weights."""

    name: str
    digest: str
    signature: Signature
    quality: Quality | None
    conditions: Mapping[str, str | float]
    entries: tuple[Entry, ...]
    states: tuple[State, ...]
    tensors: Mapping[str, Stored]
    files: Mapping[str, FileFact]
    steps: int = 1
    layout: Layout | None = None


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a program without its own `sha256`, written with sorted names and no spaces."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_program(content: bytes, file: str = PROGRAM) -> Program:
    """The program in a `program.json`, grammar and own hash checked (`references.check_references` does the rest).

    Raises:
        ArtifactError: anything that is not as the grammar says, with its place in the file.
    """
    root = parse(content, file)
    if isinstance(root.value, dict) and root.value.get("format") == FORMAT and root.value.get("version") != VERSION:
        root.fail(f"is of version {root.value.get('version')!r}; this runtime reads version {VERSION}")
    parts = root.object(need=_MEMBERS, may=("steps", "layout", "sizes"))
    steps = parts["steps"].integer(1, 1 << 40) if "steps" in parts else 1
    parts["format"].choice((FORMAT,))
    parts["version"].integer(VERSION, VERSION)
    digest = parts["sha256"].hash()
    if digest_of(root.value) != digest:
        parts["sha256"].fail("does not fit the content: the program was changed after it was written")
    signature = read_signature(parts["signature"], fixed="steps" in parts)
    return Program(
        name=parts["name"].text(200),
        digest=digest,
        signature=signature,
        quality=None if parts["quality"].value is None else _quality(parts["quality"]),
        conditions={name: _condition(item) for name, item in parts["conditions"].mapping(100).items()},
        entries=tuple(parts["entries"].list(_entry, least=1, most=100_000)),
        states=_states(parts["states"], _free(parts, signature)),
        tensors=_tensors(parts["tensors"]),
        files={_plain(name, item): _file(item) for name, item in parts["files"].mapping(100_000).items()},
        steps=steps,
        layout=read_layout(parts["layout"]) if "layout" in parts else None,
    )


def _plain(name: str, item: Node) -> str:
    return Node(name, f"{item.place} (its name)", item.file).file_name()


def _free(parts: Mapping[str, Node], signature: Signature) -> tuple[str, ...]:
    """The names of free sizes: lengths, and what follows from them."""
    if "sizes" not in parts:
        return tuple(signature.lengths)
    names = parts["sizes"].list(lambda item: item.text(200), most=10_000)
    if not signature.lengths or "steps" not in parts:
        parts["sizes"].fail("follow from no length")
    if len({*names, *signature.lengths}) != len(names) + len(signature.lengths):
        parts["sizes"].fail("name a size twice")
    return (*signature.lengths, *names)


def _quality(node: Node) -> Quality:
    parts = node.object(need=("name", "higher_is_better"))
    return Quality(parts["name"].text(200), _flag(parts["higher_is_better"]))


def _flag(node: Node) -> bool:
    if not isinstance(node.value, bool):
        node.fail(f"must be true or false, got {node.value!r}")
    return bool(node.value)


def _condition(node: Node) -> str | float:
    return node.text(1000) if isinstance(node.value, str) else node.number()


def _entry(node: Node) -> Entry:
    parts = node.object(need=("config", "measured", "start_state", "check"))
    config = {name: _knob(item) for name, item in parts["config"].mapping().items()}
    measured = {name: item.number() for name, item in parts["measured"].mapping(1000).items()}
    check = None
    if parts["check"].value is not None:
        inner = parts["check"].object(need=("inputs", "outputs", "tolerance"))
        names = [tuple(inner[key].list(lambda item: item.text(500))) for key in ("inputs", "outputs")]
        check = Check(names[0], names[1], inner["tolerance"].number())
    return Entry(config, measured, parts["start_state"].integer(), check)


def _knob(node: Node) -> int | bool:
    return node.value if isinstance(node.value, bool) else node.integer(-(1 << 62))


def _states(node: Node, free: tuple[str, ...]) -> tuple[State, ...]:
    found: list[State] = []

    def read(item: Node) -> None:
        found.append(like(item, found) if is_like(item) else _state(item, free))

    node.list(read, least=1, most=100_000)
    return tuple(found)


def _state(node: Node, free: tuple[str, ...]) -> State:
    deciding = isinstance(node.value, dict) and "params" in node.value
    extra = ("params", "made", "at", "rows") if deciding else ()
    need = ("graph", "inputs", "outputs", "initializers", "max_threads", "next", *extra)
    parts = node.object(need=need, may=() if deciding else ("on",))
    outputs = tuple(parts["outputs"].list(lambda item: item.text(500), most=10_000))
    initializers = tuple(parts["initializers"].list(_initializer))
    if len({item.name for item in initializers}) != len(initializers):
        parts["initializers"].fail("names a weight twice")
    step, returns = None, Node({}, "", node.file)
    if deciding:
        step = read_step(parts, DTYPES, _initializer, free)
        if parts["graph"].value is None and outputs:
            parts["outputs"].fail("come from no graph")
    else:
        returns = parts["next"].object(need=("return",))["return"]
        _check_struct(returns, len(outputs))
    return State(
        graph="" if deciding and parts["graph"].value is None else parts["graph"].file_name(),
        inputs=tuple(parts["inputs"].list(_input)),
        outputs=outputs,
        initializers=initializers,
        max_threads=None if parts["max_threads"].value is None else parts["max_threads"].integer(1, 4096),
        returns=returns.value,
        step=step,
        on=read_on(parts["on"]) if "on" in parts else None,
    )


def _input(node: Node) -> tuple[int, str]:
    pair = node.list(lambda item: item, least=2, most=2)
    return pair[0].integer(0, 10_000), pair[1].text(500)


def _initializer(node: Node) -> Initializer:
    parts = node.object(need=("name", "tensor", "ranges"))
    ranges = None
    if parts["ranges"].value is not None:
        ranges = tuple(parts["ranges"].list(_runs, most=16))
    return Initializer(parts["name"].text(1000), parts["tensor"].text(1000), ranges)


def _runs(node: Node) -> Runs | None:
    return None if node.value is None else tuple(node.list(_run, least=1))


def _run(node: Node) -> tuple[int, int]:
    begin, end = node.list(lambda item: item.integer(0, 1 << 40), least=2, most=2)
    if begin >= end:
        node.fail(f"must begin before it ends, got [{begin}, {end}]")
    return begin, end


def _check_struct(node: Node, outputs: int) -> None:
    if not isinstance(node.value, dict) or len(node.value) != 1:
        node.fail("must be an object with one member")
    kind, inner = next(iter(node.mapping().items()))
    if kind == "t":
        inner.integer(0, outputs - 1)
    elif kind == "py":
        if not (inner.value is None or isinstance(inner.value, bool | str)):
            inner.number()
    elif kind in ("list", "tuple"):
        inner.list(lambda item: _check_struct(item, outputs))
    elif kind == "dict":
        for item in inner.mapping().values():
            _check_struct(item, outputs)
    else:
        node.fail(f"must be one of t, py, list, tuple, dict, got {kind!r}")


def _tensors(node: Node) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    end = 0
    for item in node.list(lambda each: each):
        parts = item.object(need=("name", "dtype", "shape", "offset", "nbytes", "sha256"))
        name, dtype = parts["name"].text(1000), parts["dtype"].choice(DTYPES)
        shape = tuple(parts["shape"].list(lambda each: each.integer(0, 1 << 40), most=16))
        offset, nbytes = parts["offset"].integer(), parts["nbytes"].integer()
        if name in stored:
            parts["name"].fail(f"{name!r} is there twice")
        if offset % ALIGNMENT or offset < end:
            parts["offset"].fail(f"must be a multiple of {ALIGNMENT} behind the tensor before, got {offset}")
        if nbytes != math.prod(shape) * np.dtype(dtype).itemsize:
            parts["nbytes"].fail(f"does not fit {dtype}{list(shape)}: got {nbytes}")
        end = offset + nbytes
        stored[name] = Stored(name, dtype, shape, offset, nbytes, parts["sha256"].hash())
    return stored


def _file(node: Node) -> FileFact:
    parts = node.object(need=("sha256", "bytes"))
    return FileFact(parts["sha256"].hash(), parts["bytes"].integer())
