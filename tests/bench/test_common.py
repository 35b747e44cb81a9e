"""The shared pieces of the benches: the cache, the workers, the results files."""

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench import _bars
from bench import _common as common
from bench.__main__ import ROWS, main
from bench._bars import Bar
from bench._common import COLUMNS, KEYS, RESULTS, Outcome
from pliant.core import PliantError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_in_the_cache_is_not_made_again(cache: Path) -> None:
    calls = []

    def make(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        (folder / "file").write_text("content")
        return {"cpu_seconds": 1.5}

    first = common.cached({"lr": 0.1, "seed": 0}, make)
    again = common.cached({"seed": 0, "lr": 0.1}, make)  # the order of the keys is no content
    assert first == again
    assert len(calls) == 1
    assert first[1] == {"cpu_seconds": 1.5}
    assert (first[0] / "file").read_text() == "content"


def test_other_content_is_made(cache: Path) -> None:
    folders = {common.cached({"seed": seed}, lambda _: {})[0] for seed in (0, 1)}
    assert len(folders) == 2


def test_a_training_that_fails_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "part").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        common.cached({"seed": 0}, fail)
    assert [path.name for path in cache.iterdir()] == [".gitignore"]
    assert common.cached({"seed": 0}, lambda _: {"done": 1})[1] == {"done": 1}


def test_git_ignores_the_cache(cache: Path) -> None:
    assert common.cache_root() == cache
    assert (cache / ".gitignore").read_text() == "*\n"


def test_workers_keep_the_order_of_the_jobs() -> None:
    assert common.in_workers(abs, [-3, 2, -1]) == [3, 2, 1]


def test_interleaved_calls_each_once_a_round() -> None:
    order: list[str] = []
    times = common.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_a_result_has_the_agreed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    outcome = Outcome({"gap": -0.123456789, "picked": 5}, "digits", [0, 1], {"gap": 0.5}, settings={"epochs": 3})
    path = common.write_result("row", outcome, 2.04, 1.0)
    data = json.loads(path.read_text())
    assert set(KEYS) <= set(data)
    assert data["figures"] == {"gap": -0.123457, "picked": 5}
    assert data["baseline"] == {"gap": 0.5}
    assert (data["seconds"], data["cpu_seconds"], data["seeds"]) == (2.0, 1.0, [0, 1])


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "fast"])
def test_a_figure_that_is_no_number_is_refused(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    with pytest.raises(PliantError, match="gap"):
        common.write_result("row", Outcome({"gap": value}, "digits", [0]), 1.0, 1.0)
    assert not list(tmp_path.iterdir())


def test_without_a_row_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ROWS)


def test_an_unknown_row_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "main-job" in capsys.readouterr().err


# A row takes at most 40 CPU minutes. main-job trains 15 networks alone and 3 families to convergence: it may take 50.
# train-once does so on three tasks, three recipes and two learning rates, whose trainings other rows use, too;
# sortednet is told with those it uses, and measures 160 sub-networks of four trainings on all test images.
# bignas trains with and without distillation and its rival, each with two rates and three seeds.
CPU_MINUTES = {"main-job": 50, "train-once": 100, "sortednet": 100, "bignas": 42}


@pytest.mark.parametrize("row", ROWS)
def test_results_hold_what_the_row_promises(row: str) -> None:
    path = RESULTS / f"{row}.json"
    if not path.exists():
        pytest.skip(f"{row} was not measured yet")
    data = json.loads(path.read_text())
    assert set(KEYS) <= set(data)
    assert set(import_module(f"bench.{ROWS[row]}").REQUIRED) <= set(data["figures"])
    for column in COLUMNS:
        for name, value in data[column].items():
            assert isinstance(value, int | float), f"{column}.{name}"
            assert not isinstance(value, bool), f"{column}.{name}"
            assert math.isfinite(value), f"{column}.{name}"
    assert set(data["baseline"]) <= set(data["figures"])
    assert 0 < data["cpu_seconds"] <= CPU_MINUTES.get(row, 40) * 60
    assert all(isinstance(data[key], str) and data[key] for key in ("data", "machine", "commit"))


def test_every_result_belongs_to_a_row() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(ROWS)


def test_status_shows_the_bars_as_measured() -> None:
    assert _bars.STATUS.read_text().endswith(_bars.table())


def test_a_bar_is_met_missed_or_open() -> None:
    bar = Bar("row", "gap", least=-0.5, most=1.0, unit="points")
    assert bar.told() == "≥ -0.5 and ≤ 1 points"
    assert [bar.verdict(value) for value in (-0.6, -0.5, 1.0, 1.1, None)] == ["missed", "met", "met", "missed", "open"]
    assert bar.measured() is None
