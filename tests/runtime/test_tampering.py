"""Damaged and forged artifacts are refused before anything of them runs, and the file is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant_runtime import ArtifactError, load
from tests.runtime.forging import Json, forge


def test_every_file_is_checked_bit_by_bit(copied: Path) -> None:
    files = sorted(path.name for path in copied.iterdir())
    assert len(files) == 6
    for name in files:
        content = (copied / name).read_bytes()
        for position in (0, len(content) // 2, len(content) - 2):
            broken = bytearray(content)
            broken[position] ^= 0x02
            (copied / name).write_bytes(broken)
            with pytest.raises(ArtifactError) as caught:
                load(copied)
            assert caught.value.file == name
        (copied / name).write_bytes(content)
    load(copied)


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_every_file_must_have_its_size(copied: Path, cut: int) -> None:
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:cut] if cut <= 0 else content + b"\0")
        with pytest.raises(ArtifactError) as caught:
            load(copied)
        assert caught.value.file == path.name
        path.write_bytes(content)


def test_every_file_must_be_there(copied: Path) -> None:
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ArtifactError, match=f"{path.name}: cannot be read"):
            load(copied)
        path.write_bytes(content)
    shutil.rmtree(copied)
    with pytest.raises(ArtifactError, match=r"program.json: cannot be read"):
        load(copied)


def test_a_changed_figure_breaks_the_programs_own_hash(copied: Path) -> None:
    text = (copied / "program.json").read_text()
    figure = '"latency_ms":'
    assert figure in text
    (copied / "program.json").write_text(text.replace(figure, figure + "1", 1))
    with pytest.raises(ArtifactError, match=r"program.json: sha256 does not fit the content"):
        load(copied)


def _first(program: Json) -> Json:
    """An initializer with ranges."""
    items = [item for state in program["states"] for item in state["initializers"] if item["ranges"]]
    return items[0]


def _set(*path: Any, value: Any) -> Callable[[Json], None]:
    def change(program: Json) -> None:
        for step in path[:-1]:
            program = program[step]
        program[path[-1]] = value

    return change


def _ranges(value: Any) -> Callable[[Json], None]:
    return lambda program: _first(program).update(ranges=value)


FORGED: dict[str, tuple[Callable[[Json], object], str]] = {
    "format": (_set("format", value="other"), "format must be one of pliant-artifact"),
    "version": (_set("version", value=2), "is of version 2; this runtime reads version 1"),
    "name": (_set("name", value=7), "name must be a string"),
    "missing member": (lambda p: p.pop("states"), "lacks states"),
    "unknown member": (_set("pickle", value="x"), "unknown member 'pickle'"),
    "signature dtype": (
        _set("signature", "inputs", 0, "dtype", value="object"),
        r"signature.inputs\[0\].dtype must be",
    ),
    "signature shape": (_set("signature", "inputs", 0, "shape", value=["N", -1]), r"shape\[1\] must be an integer"),
    "signature no batch": (_set("signature", "inputs", 0, "shape", value=[4, 6]), 'must have the batch "N" as axis 0'),
    "signature call": (_set("signature", "call", value="eval"), "call must be one of tensor, tuple, dict"),
    "signature empty": (_set("signature", "inputs", value=[]), "inputs must be a list of 1 to"),
    "task": (_set("signature", "task", value="guess"), "task must be one of classify"),
    "classes": (_set("signature", "classes", value=[1, 2]), r"classes\[0\] must be a string"),
    "layout": (_set("signature", "preprocessing", "layout", value="CHWN"), "layout must be one of NHW"),
    "scale": (_set("signature", "preprocessing", "scale", value=0), "divides by zero"),
    "mean": (_set("signature", "preprocessing", "mean", value=[0.5]), "must both be empty or have 6 numbers"),
    "std": (_set("signature", "preprocessing", "std", value=["x"] * 6), r"std\[0\] must be a finite number"),
    "quality": (_set("quality", "higher_is_better", value=1), "must be true or false"),
    "conditions": (_set("conditions", "machine", value=[]), r"conditions\['machine'\] must be a finite number"),
    "no entries": (_set("entries", value=[]), "entries must be a list of 1 to"),
    "config": (_set("entries", 0, "config", value={"width:a": 0.5}), "must be an integer"),
    "measured": (_set("entries", 0, "measured", value={"accuracy": "high"}), "must be a finite number"),
    "start state": (_set("entries", 0, "start_state", value=2), r"entries\[0\] starts in state 2, there are 2"),
    "start state type": (_set("entries", 0, "start_state", value=True), "start_state must be an integer"),
    "check tensor": (_set("entries", 0, "check", "inputs", 0, value="x"), "checks with the tensor 'x', which is not"),
    "check count": (_set("entries", 0, "check", "outputs", value=[]), "checks 0 outputs, the signature has 1"),
    "graph missing": (_set("states", 0, "graph", value="other.onnx"), "needs the graph 'other.onnx'"),
    "graph path": (_set("states", 0, "graph", value="../other.onnx"), "graph must be a plain file name"),
    "graph absolute": (_set("states", 0, "graph", value="/etc/passwd"), "graph must be a plain file name"),
    "graph hidden": (_set("states", 0, "graph", value=".hidden"), "graph must be a plain file name"),
    "input number": (
        _set("states", 0, "inputs", value=[[1, "input"]]),
        r"states\[0\] takes input 1, the signature has",
    ),
    "outputs": (_set("states", 0, "outputs", value=[]), "return.*must be an integer from 0 to -1"),
    "return output": (_set("states", 0, "next", "return", value={"t": 1}), "must be an integer from 0 to 0"),
    "return kind": (
        _set("states", 0, "next", "return", value={"eval": "1"}),
        "must be one of t, py, list, tuple, dict",
    ),
    "goto": (_set("states", 0, "next", value={"goto": {"state": 1}}), r"states\[0\].next lacks return"),
    "if": (_set("states", 0, "next", value={"if": {}, "then": {}, "else": {}}), r"states\[0\].next lacks return"),
    "raise": (_set("states", 0, "next", value={"raise": {}}), r"states\[0\].next lacks return"),
    "threads": (_set("states", 0, "max_threads", value=0), "max_threads must be an integer from 1"),
    "weight tensor": (lambda p: _first(p).update(tensor="none"), "is the tensor 'none', which is not stored"),
    "range end": (_ranges([[[0, 99]], None]), "reads to 99 on axis 0"),
    "range order": (_ranges([[[4, 2]], None]), "must begin before it ends"),
    "range negative": (_ranges([[[-1, 2]], None]), "must be an integer from 0"),
    "range axes": (_ranges([None, None, None]), "has ranges for 3 axes"),
    "range repeated": (_ranges([[[0, 16]] * 1000, None]), "is longer than its tensor on axis 0"),
    "tensor dtype": (_set("tensors", 0, "dtype", value="complex64"), r"tensors\[0\].dtype must be one of"),
    "tensor shape": (_set("tensors", 0, "shape", value=[3]), "nbytes does not fit"),
    "tensor offset": (_set("tensors", 0, "offset", value=3), "offset must be a multiple of 64"),
    "tensor overlap": (_set("tensors", 1, "offset", value=0), "behind the tensor before, got 0"),
    "tensor twice": (lambda p: p["tensors"].append(p["tensors"][0]), "is there twice"),
    "tensor hash form": (_set("tensors", 0, "sha256", value="00"), "sha256 must be a SHA-256 in hex"),
    "file path": (lambda p: p["files"].update({"../x": p["files"]["weights.bin"]}), "must be a plain file name"),
    "file size": (_set("files", "weights.bin", "bytes", value=-1), "bytes must be an integer from 0"),
    "files without weights": (lambda p: p["files"].pop("weights.bin"), "files lacks weights.bin"),
    "files with program": (
        lambda p: p["files"].update({"program.json": p["files"]["weights.bin"]}),
        "lists program.json",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_programs_are_refused_with_the_place(copied: Path, case: str) -> None:
    change, message = FORGED[case]
    forge(copied, change)
    with pytest.raises(ArtifactError, match=rf"(?s)^program.json: .*{message}") as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_tensors_behind_the_end_of_the_file_are_refused(copied: Path) -> None:
    def change(program: Json) -> None:
        program["tensors"][-1]["offset"] += 64

    forge(copied, change)
    with pytest.raises(ArtifactError, match=r"program.json: tensors end at byte \d+, but weights.bin has"):
        load(copied)


def test_a_forged_tensor_hash_is_found_in_the_weights(copied: Path) -> None:
    forge(copied, _set("tensors", 0, "sha256", value="0" * 64))
    with pytest.raises(ArtifactError, match=r"weights.bin: tensor '.*' differs from its SHA-256"):
        load(copied)


LATE: dict[str, tuple[Callable[[Json], object], str]] = {
    "another weight": (lambda p: p["states"][0]["initializers"].pop(), "cannot be loaded"),
    "weight of another shape": (_ranges([[[0, 1]], None]), "cannot be loaded .*dimensions do not match"),
    "another input": (_set("states", 0, "inputs", value=[[0, "x"]]), r"takes \['input'\], the program gives \['x'\]"),
    "another output": (_set("states", 0, "outputs", value=["x"]), "has no output 'x'"),
    "another dtype": (_set("signature", "inputs", 0, "dtype", value="float64"), "the program says float64"),
}


@pytest.mark.parametrize("case", LATE)
def test_graphs_that_do_not_fit_the_program_are_refused_when_loaded(copied: Path, case: str) -> None:
    change, message = LATE[case]
    forge(copied, change)
    family = load(copied)
    with pytest.raises(ArtifactError, match=rf"^graph-[0-9a-f]+.onnx: .*{message}"):
        family.prepare()


def test_a_graph_that_is_no_graph_is_refused(copied: Path) -> None:
    import hashlib

    def change(program: Json) -> None:
        name = program["states"][0]["graph"]
        (copied / name).write_bytes(b"no graph")
        program["files"][name] = {"sha256": hashlib.sha256(b"no graph").hexdigest(), "bytes": 8}

    forge(copied, change)
    with pytest.raises(ArtifactError, match=r"^graph-[0-9a-f]+.onnx: cannot be loaded"):
        load(copied).run(np.zeros((1, 6), dtype=np.uint8), entry=0)


TEXTS = {
    "empty": (b"", "is no valid JSON"),
    "binary": (b"\x80\x04\x95", "is no valid JSON"),
    "deep": (b"[" * 100_000, "is nested deeper than 40 levels"),
    "deep and closed": (b"[" * 50 + b"]" * 50, "is nested deeper than 40 levels"),
    "brackets in text": (b'"' + b"[" * 100 + b'"', "document must be an object"),
    "nan": (b'{"format": NaN}', "NaN is not a number"),
    "twice": (b'{"format": 1, "format": 2}', "a name occurs twice"),
    "list": (b"[]", "document must be an object, got"),
    "huge": (b" " * ((16 << 20) + 1), "is larger than"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_documents_that_are_no_programs_are_refused(copied: Path, case: str) -> None:
    content, message = TEXTS[case]
    (copied / "program.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"^program.json: .*{message}"):
        load(copied)
