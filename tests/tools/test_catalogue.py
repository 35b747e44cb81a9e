import json
from pathlib import Path
from typing import Any

import pytest

from pliant.core import Facts, PliantError
from pliant.report import Method
from tools import catalogue
from tools.catalogue import main, methods_page, pages, read_results, results_page

ROOT = Path(__file__).parents[2]
METHODS = [
    Method(
        "Nested", "pliant.elastic.recipes", Facts(title="Nested | widths", year=2026, room="elastic", rows=("010",))
    ),
    Method(
        "prune", "pliant.compress", Facts("Pruning", 2017, "compress", ("011",), ("data",), ("cost",), ("One.", "Two."))
    ),
]


def write(folder: Path, row: str, data: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row}.json").write_text(json.dumps(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    figures = {"accuracy": 0.91234, "parameters": 123456, "seconds_per_step": 0.00012345}
    data = {"figures": figures, "baseline": {"accuracy": 0.9}, "seeds": [0, 1], "machine": {"threads": 1}}
    write(tmp_path / "bench" / "results", "010", data)
    return tmp_path


def test_methods_by_room_with_links_to_what_was_measured(root: Path) -> None:
    page = methods_page(METHODS, read_results(root / "bench" / "results"))
    assert page.startswith("<!-- Generated")
    assert "2 methods, read from" in page
    assert page.index("## compress") < page.index("## elastic")
    nested, pruned = sorted((line for line in page.splitlines() if line.startswith("| `")), key=len, reverse=True)
    assert nested == "| `Nested` | Nested \\| widths | 2026 |  |  | [010](results.md#010) |"
    assert pruned == "| `prune` | Pruning | 2017 | data | cost |  |"
    assert "- **prune**: One; Two." in page


def test_results_beside_baseline_and_conditions(root: Path) -> None:
    page = results_page(read_results(root / "bench" / "results"))
    lines = page.splitlines()
    assert "## 010 { #010 }" in lines
    assert "| figure | pliant | baseline |" in lines
    assert "| `accuracy` | 0.9123 | 0.9 |" in lines
    assert "| `parameters` | 123,456 |  |" in lines
    assert "- machine: threads 1" in lines
    assert "- seeds: 0, 1" in lines


def test_settings_are_short_and_name_the_file_that_holds_the_rest(root: Path) -> None:
    told = {"epochs": 3, "table": {f"net{i}": {"laws": list(range(12))} for i in range(149)}}
    write(root / "bench" / "results", "012", {"figures": {"a": 1}, "settings": told})
    page = results_page(read_results(root / "bench" / "results"))
    assert "- epochs: 3\n- table: see `bench/results/012.json`" in page
    assert max(map(len, page.splitlines())) < 400


def test_no_line_of_the_committed_page_is_a_dump() -> None:
    assert max(map(len, (ROOT / "docs" / "results.md").read_text().splitlines())) < 1000


def test_nothing_measured_yet() -> None:
    assert "Nothing has been measured yet." in results_page([])


@pytest.mark.parametrize("data", [[1], {"baseline": {}}, {"figures": 3}])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, data: Any) -> None:
    write(tmp_path, "010", data)
    with pytest.raises(PliantError, match=r"010\.json: a result needs a map `figures`\. run its bench again"):
        read_results(tmp_path)


def test_check_finds_stale_pages_and_writing_mends_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(catalogue, "pages", lambda root: pages(root, lambda: METHODS))
    assert main([str(root), "--check"]) == 1
    assert "methods.md:1: not up to date; run `make catalogue`" in capsys.readouterr().out
    assert not (root / "docs").exists()
    assert main([str(root)]) == 0
    assert main([str(root), "--check"]) == 0
    write(root / "bench" / "results", "012", {"figures": {"a": 1}})
    assert main([str(root), "--check"]) == 1


def test_the_committed_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ROOT), "--check"]) == 0, capsys.readouterr().out
