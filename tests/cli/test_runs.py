import json
from dataclasses import replace
from pathlib import Path

import pytest

from pliant.cli.runs import RunConfig, claimed
from pliant.core import PliantError

CONFIG = RunConfig(model="mlp", data="digits", args={"hidden": [8]}, epochs=3)


def test_a_config_comes_back(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    assert RunConfig.load(tmp_path) == CONFIG


def test_what_others_keep_in_config_json_stays(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "train": {"seed": 0}}))
    with claimed(tmp_path, CONFIG):
        pass
    assert json.loads(path.read_text())["train"] == {"seed": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"lr": float("nan")}, "--lr must be positive"),
    ],
)
def test_figures_out_of_range(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_paths_are_absolute_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npz").touch()
    monkeypatch.chdir(tmp_path)
    config = replace(CONFIG, model="nets/mine.py:make", data="x.npz").anchored()
    assert (config.model, config.data) == (f"{tmp_path}/nets/mine.py:make", f"{tmp_path}/x.npz")
    assert CONFIG.anchored() == CONFIG


def test_a_run_of_something_else_is_refused(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    with (
        pytest.raises(PliantError, match=r"this run has model 'mlp', not 'vit'"),
        claimed(tmp_path, replace(CONFIG, model="vit")),
    ):
        raise AssertionError("must not be entered")
    assert RunConfig.load(tmp_path) == CONFIG


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PliantError, match="not empty"), claimed(tmp_path, CONFIG):
        raise AssertionError("must not be entered")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_new_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def begin() -> None:
        with claimed(tmp_path / "run", CONFIG):
            (tmp_path / "run" / "metrics.jsonl").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_checkpoint_stays(tmp_path: Path) -> None:
    def begin() -> None:
        with claimed(tmp_path / "run", CONFIG):
            (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert RunConfig.load(tmp_path / "run") == CONFIG


@pytest.mark.parametrize("text", ["[]", '{"format": 99, "model": "mlp", "data": "d"}', '{"format": 1}'])
def test_a_config_of_another_format_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PliantError, match="not a config of format 1"):
        RunConfig.load(tmp_path)


def test_no_run_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match="pliant train MODEL"):
        RunConfig.load(tmp_path / "none")
