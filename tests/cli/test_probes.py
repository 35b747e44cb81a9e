"""`pliant probes`: from a trained run to a search for a machine that is known by its description."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pliant.cli import main
from pliant.export.network_text import read_line
from pliant_runtime.measure import main as measure
from pliant_runtime.probes import Description, Reading, read_probes

USER = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
"""
FEW = ["--operators", "8", "--networks", "10", "--checks", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    (folder / "mine.py").write_text(USER)
    argv = ["train", f"{folder / 'mine.py'}:make", "--data", "digits", "--run", str(folder / "run"), "--epochs", "1"]
    assert main([*argv, "--limit", "200"]) == 0
    return folder / "run"


def answer(capsys: pytest.CaptureFixture[str], argv: list[str]) -> Any:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def clock(text: str) -> float:
    """Milliseconds on a machine that is not this one."""
    return 0.01 + sum(line.macs + line.values for line in map(read_line, text.splitlines())) / 1e5


def test_probes_are_measured_elsewhere_and_searched_with_here(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, described = tmp_path / "probes", tmp_path / "here.hardware.json"
    told = answer(capsys, ["probes", str(run), "--out", str(out), *FEW])
    assert told["counts"] == {"operator": 8, "whole": 10, "check": 3}
    assert told["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert measure([str(out), "--out", str(described), "--seconds", "0.2"]) == 0
    assert len(json.loads(described.read_text())["measured"]) == 21
    # what a quiet board would have said: this machine may be too noisy to rank networks as small as these
    readings = tuple(Reading(p.name, p.role, p.text, clock(p.text), 0.0) for p in read_probes(out))
    board = Description("a small board", 1, 0.01, 9.0, readings).save(tmp_path / "board.hardware.json")
    goals = ["--objectives", "parameters,latency", "--trials", "5"]
    found = answer(capsys, ["search", str(run), "--hardware", str(board), *goals])
    assert found["trials"] == 5
    assert all(point["values"]["latency_ms"] > 0.01 for point in found["front"])


def test_a_saved_family_will_do_and_the_same_seed_makes_the_same_probes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, few = tmp_path / "probes", ["--networks", "4", "--checks", "2"]
    answer(capsys, ["probes", str(run), "--out", str(out), *few])
    first = read_probes(out)
    assert "exists already. choose another --out or give --replace" in failure(
        capsys, ["probes", str(run), "--out", str(out), *few]
    )
    answer(capsys, ["probes", str(run / "model"), "--out", str(out), *few, "--replace"])
    assert read_probes(out) == first
    answer(capsys, ["probes", str(run), "--out", str(out), *few, "--operators", "2", "--replace"])
    assert len(list(out.glob("*.onnx"))) == len(read_probes(out)) == 8  # nothing of the larger set is left


def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, untrained, artifact = tmp_path / "probes", tmp_path / "untrained", tmp_path / "artifact"
    untrained.mkdir()
    shutil.copy(run / "config.json", untrained)
    artifact.mkdir()
    (artifact / "program.json").write_text("{}")
    (tmp_path / "other").mkdir()
    for argv, said in (
        ([str(run)], "the family has 16 sub-networks, fewer than --networks 60 and --checks 30 together"),
        ([str(run), *FEW, "--networks", "3"], "networks must be at least 4, got 3"),
        ([str(tmp_path / "nowhere")], "no run folder"),
        ([str(untrained)], "training has not ended"),
        ([str(artifact)], "is a compiled artifact"),
        ([str(run), *FEW, "--operators", "-1"], "operators must be at least 0, got -1"),
    ):
        assert said in failure(capsys, ["probes", *argv, "--out", str(out)])
        assert not out.exists()
    # a folder that holds something else is not replaced, even where asked for
    assert "exists already. choose another --out" in failure(
        capsys, ["probes", str(run), "--out", str(tmp_path / "other"), *FEW, "--replace"]
    )
