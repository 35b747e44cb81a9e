"""`pliant look --html`: a page beside what is printed."""

import json
from pathlib import Path

import pytest

from pliant.cli import main


def test_look_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "look.html"
    words = ["look", "mlp", "--shape", "1,8,8", "--arg", "hidden=[16,12]", "--html", str(path), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["html"] == str(path)
    text = path.read_text()
    assert text.startswith("<!doctype html>")
    assert "Circuit diagram of" in text
    assert all(f"<code>{group['name']}</code>" in text for group in found["report"]["groups"])


def test_look_without_a_page_writes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["look", "mlp", "--shape", "4", "--arg", "hidden=[6]", "--json"]) == 0
    assert "html" not in json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["look", "mlp", "--shape", "4", "--arg", "hidden=[6]", "--html", str(tmp_path / "file" / "look.html")]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("pliant: error: ")
