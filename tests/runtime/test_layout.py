"""Artifacts of shells: damaged layouts are refused, old artifacts load, one session serves all sub-networks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pliant.deploy import compile
from pliant.elastic import elastic
from pliant_runtime import ArtifactError, load
from pliant_runtime.serving.model import Model, measure
from tests.runtime.forging import Json, forge


@pytest.fixture(scope="session")
def shells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = elastic(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(4, 6))
    sizes = list(net.space.configs())
    return compile(net, tmp_path_factory.mktemp("shells") / "net.pliant", configs=sizes, layout="shells")


@pytest.fixture
def copied(shells: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shells, tmp_path / "net.pliant"))


def _set(*path: Any, value: Any) -> Callable[[Json], None]:
    def change(program: Json) -> None:
        for key in path[:-1]:
            program = program[key]
        program[path[-1]] = value

    return change


def _drop(*path: Any) -> Callable[[Json], None]:
    def change(program: Json) -> None:
        for key in path[:-1]:
            program = program[key]
        del program[path[-1]]

    return change


DAMAGES: dict[str, tuple[Callable[[Json], object], str]] = {
    "no layout": (_drop("layout"), r"states\[0\] has switches, the layout has none"),
    "another form": (
        _set("layout", "form", value="folded"),
        r"layout.form must be one of slices, shells, got 'folded'",
    ),
    "slices with a switch": (
        _set("layout", "form", value="slices"),
        r"layout.switch does not go with the form 'slices'",
    ),
    "shells without one": (_set("layout", "switch", value=None), r"layout.switch does not go with the form 'shells'"),
    "a switch less": (_set("layout", "switch", "size", value=1), r"turns on switch \d, there are 1"),
    "no switch": (_set("layout", "switch", "size", value=0), r"layout.switch.size must be an integer from 1"),
    "a strange member": (_set("layout", "path", value="../x"), r"layout has the unknown member 'path'"),
    "no reason": (_drop("layout", "why"), r"layout lacks why"),
    "words measured": (
        _set("layout", "measured", "latency_ratio_b1", value="1"),
        r"latency_ratio_b1'\] must be a finite",
    ),
    "switches that descend": (_set("states", 0, "on", value=[1, 0]), r"states\[0\].on must ascend"),
    "a switch twice": (_set("states", 0, "on", value=[0, 0]), r"states\[0\].on must ascend"),
    "a switch below 0": (_set("states", 0, "on", value=[-1]), r"states\[0\].on\[0\] must be an integer from 0"),
    "a switch too far": (_set("states", 1, "on", value=[99]), r"states\[1\] turns on switch 99"),
    "like itself": (_set("states", 1, "like", value=1), r"states\[1\].like must be an earlier state"),
    "like a later one": (_set("states", 1, "like", value=2), r"states\[1\].like must be an earlier state"),
    "like one that is like": (_set("states", 2, "like", value=1), r"states\[2\].like must be an earlier state"),
    "like nothing": (_set("states", 1, "like", value=None), r"states\[1\].like must be an integer"),
    "like the first, first": (_set("states", 0, value={"like": 0, "on": []}), r"states\[0\].like must be an earlier"),
    "like with a graph": (_set("states", 1, "graph", value="x.onnx"), r"states\[1\] has the unknown member 'graph'"),
    "like without switches": (_drop("states", 1, "on"), r"states\[1\] lacks on"),
    "no switches": (_drop("states", 0, "on"), r"states\[1\].like must be an earlier state with a graph and switches"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_layouts_are_refused_before_anything_runs(name: str, copied: Path) -> None:
    change, message = DAMAGES[name]
    forge(copied, change)
    with pytest.raises(ArtifactError, match=message):
        load(copied)


def test_a_switch_that_the_graph_lacks_is_refused(copied: Path, shells: Path, tmp_path: Path) -> None:
    forge(copied, _set("layout", "switch", "name", value="other"))
    with pytest.raises(ArtifactError, match=r"input 'other' has the shape None, the program says \[\d\]"):
        load(copied).prepare()
    again = Path(shutil.copytree(shells, tmp_path / "again"))
    size = load(shells).program.layout.switch.size  # type: ignore[union-attr]
    forge(again, _set("layout", "switch", "size", value=size + 1))
    with pytest.raises(ArtifactError, match=rf"has the shape \[{size}\], the program says \[{size + 1}\]"):
        load(again).prepare()
    named = Path(shutil.copytree(shells, tmp_path / "named"))
    forge(named, _set("layout", "switch", "name", value="input"))
    with pytest.raises(ArtifactError, match="input 'input' has the shape"):
        load(named).prepare()


def test_every_byte_of_the_shells_is_checked(copied: Path) -> None:
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        broken = bytearray(content)
        broken[len(content) // 2] ^= 0x04
        path.write_bytes(broken)
        with pytest.raises(ArtifactError) as caught:
            load(copied)
        assert caught.value.file == path.name
        path.write_bytes(content)
    load(copied)


def test_artifacts_without_a_layout_load(original: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(original, tmp_path / "old.pliant"))
    forge(old, _drop("layout"))
    family = load(old)
    assert family.program.layout is None
    rows = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    for entry in range(len(family)):
        np.testing.assert_array_equal(family.run(rows, entry=entry), load(original).run(rows, entry=entry))


def test_one_session_answers_for_all(shells: Path) -> None:
    family = load(shells)
    rows = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    outputs = [family.run(rows, entry=entry) for entry in range(len(family))]
    assert len(family._executor._sessions) == 1
    assert len({output.tobytes() for output in outputs}) == len(family)
    slow = max(entry.measured["latency_ms"] for entry in family.entries)
    np.testing.assert_array_equal(family.run(rows, budget_ms=slow), outputs[family.choose(budget_ms=slow)])
    np.testing.assert_array_equal(family.run(rows, config=family.entries[0].config), outputs[0])
    assert max(family.check().values()) < 1e-3


def test_shells_are_served_like_any_other_artifact(shells: Path) -> None:
    family = load(shells)
    model = Model(family, measure(family, slo_s=0.001, rounds=3, seconds=0.1))
    assert len(model.table) == len(family)
    rows = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    for subnet in range(len(family)):
        first, second = model.run(subnet, [[rows[:1]], [rows[1:]]])
        joined = np.concatenate([first[0], second[0]])
        np.testing.assert_allclose(joined, family.run(rows, entry=subnet), rtol=1e-5, atol=1e-6)


def test_memory_that_was_given_back_is_read_again(shells: Path) -> None:
    family = load(shells)
    family.prepare()
    before = {name: family._weights.tensor(name).copy() for name in family.program.tensors}
    family._weights.release()
    for name, value in before.items():
        np.testing.assert_array_equal(family._weights.tensor(name), value)
