"""Simulation and load from both command lines, and the plots."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pliant.cli import main as pliant
from pliant_runtime.__main__ import main as runtime
from pliant_runtime.serving.plot import chart, stacked
from pliant_runtime.serving.table import Table


@pytest.fixture
def measured(conv: Table, tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(conv.to_dict()))
    return path


def test_simulate_answers_as_table_json_and_plot(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant_runtime.serving import simulate

    monkeypatch.setattr(simulate, "LOADS", (0.5, 3.0))
    plot = tmp_path / "plot.svg"
    words = ["simulate", str(measured), "--slo-ms", "50", "--noise", "quiet"]
    assert runtime([*words, "--svg", str(plot), "--json"]) == 0
    printed = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed.out)
    assert found["capacity"]["adaptive"] > 10 * found["capacity"]["largest"]
    assert found["step"]["adaptive"]["shed"] == 0
    assert "highest load held" in printed.err
    drawn = ElementTree.fromstring(plot.read_text())
    assert len([each for each in drawn.iter() if each.tag.endswith("polyline")]) == 4
    assert pliant([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capacity"] == found["capacity"]  # one seed, one answer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "T", "--slo-ms", "0"], "positive time"),
        (["simulate", "T", "--slo-ms", "50", "--noise", "loud"], "no noise"),
        (["simulate", "T", "--slo-ms", "50", "--rows", "0"], "at least 1"),
        (["load", "ftp://a"], "give an address"),
        (["load", "http://127.0.0.1:9", "--rules", "best"], "no rule"),
        (["load", "http://127.0.0.1:9"], ""),
        (["serve", "nowhere", "--slo-ms", "5", "--policy", "best"], "no policy"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], said: str, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pliant([str(measured) if word == "T" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pliant: error: ")
    assert said in told
    assert told.count("\n") == 1


def test_plots_are_well_formed_and_escape_names() -> None:
    drawn = chart("a < b", {"<x>": [(1, 1), (10, 100), (100, float("nan"))]}, x="x", y="y", log_x=True, log_y=True)
    root = ElementTree.fromstring(stacked([drawn, drawn]))
    assert [child.get("y") for child in root] == ["0", "300"]
    with pytest.raises(ValueError, match="nothing to draw"):
        chart("empty", {"a": []}, x="x", y="y")


def test_without_the_extra_all_but_serving_works_and_the_error_names_it(measured: Path) -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(('fastapi', 'starlette', 'uvicorn', 'prometheus_client')));"
    run = "from pliant_runtime.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", absent + run, *words], capture_output=True, text=True)

    served = command("serve", "nowhere", "--slo-ms", "5")
    assert served.returncode == 1
    assert "pip install 'pliant-runtime[serve]'" in served.stderr
    assert served.stderr.count("\n") == 1
    simulated = command("simulate", str(measured), "--slo-ms", "0")
    assert "positive time" in simulated.stderr  # it came as far as its own checks
    library = "import pliant_runtime.serving, pliant_runtime.serving.service, pliant_runtime.serving.load"
    assert subprocess.run([sys.executable, "-c", absent + library]).returncode == 0
