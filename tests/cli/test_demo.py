import json
from pathlib import Path

import pytest

from pliant.cli import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    assert main(["demo", "--short", "--out", str(out)]) == 0
    return out


def test_it_leaves_a_run_an_artifact_a_report_and_a_picture(demo: Path) -> None:
    for name in ("config.json", "model", "front.json", "artifact/program.json", "report.html", "pareto.svg"):
        assert (demo / name).exists(), name
    assert "<svg" in (demo / "pareto.svg").read_text()


def test_given_again_it_does_nothing_twice(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: (demo / name).read_bytes() for name in ("front.json", "artifact/program.json", "test.json")}
    capsys.readouterr()
    assert main(["demo", "--short", "--out", str(demo), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: (demo / name).read_bytes() for name in kept} == kept
    assert len(found["networks"]) >= 2
    for network in found["networks"]:
        assert 0 <= network["accuracy"] <= 1
        assert network["latency_ms"] > 0
    assert max(network["accuracy"] for network in found["networks"]) > 0.5  # chance is 0.1
    parameters = [network["parameters"] for network in found["networks"]]
    assert min(parameters) < max(parameters)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(["demo", "--short", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
