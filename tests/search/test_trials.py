import warnings
from pathlib import Path

import optuna
import optuna.storages.journal as journal
import pytest

from pliant.core import Knob, PliantError, Space, read_json, write_json
from pliant.search import Axis, Point
from pliant.search.trials import check_run, only_one, open_trials

SPACE = Space([Knob("width:a", (1, 2, 3)), Knob("depth:b", (False, True))])
AXES = (Axis("accuracy", True), Axis("latency_ms"))
MODEL = {"name": "Toy", "tensors": {"w": [3, 2]}}
POINTS = [
    Point(SPACE.smallest(), {"accuracy": 0.5, "latency_ms": 1.0}, {"latency_ms": 0.1}),
    Point(SPACE.largest(), {"accuracy": 0.75, "latency_ms": 3.0}),
]


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    for run in (None, tmp_path):
        trials = open_trials(run, "one", SPACE, AXES)
        for point in POINTS:
            trials.add(point)
        assert trials.points() == POINTS
    assert open_trials(tmp_path, "one", SPACE, AXES).points() == POINTS
    assert open_trials(tmp_path, "other", SPACE, AXES).points() == []
    assert isinstance(POINTS[0].config["depth:b"], bool)
    assert open_trials(tmp_path, "one", SPACE, AXES).points()[0].config["depth:b"] is False


def test_journal_is_an_optuna_study(tmp_path: Path) -> None:
    trials = open_trials(tmp_path, "one", SPACE, AXES)
    for point in POINTS:
        trials.add(point)
    storage = journal.JournalStorage(journal.JournalFileBackend(str(tmp_path / "trials.journal")))
    study = optuna.load_study(study_name="one", storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [[0.5, 1.0], [0.75, 3.0]]
    assert study.trials[1].params == dict(SPACE.largest())


def test_half_a_line_and_a_left_lock_do_no_harm(tmp_path: Path) -> None:
    trials = open_trials(tmp_path, "one", SPACE, AXES)
    for point in POINTS:
        trials.add(point)
    path = tmp_path / "trials.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    (tmp_path / "trials.journal.lock").symlink_to(path)
    trials = open_trials(tmp_path, "one", SPACE, AXES)
    assert trials.points() == POINTS[:1]
    trials.add(POINTS[1])
    assert open_trials(tmp_path, "one", SPACE, AXES).points() == POINTS


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.journal").write_text("nonsense\nmore\n")
    with pytest.raises(PliantError, match=r"trials.journal: the journal of trials is damaged"):
        open_trials(tmp_path, "one", SPACE, AXES)


def test_global_settings_of_optuna_stay(tmp_path: Path) -> None:
    before, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    open_trials(tmp_path, "one", SPACE, AXES).add(POINTS[0])
    assert optuna.logging.get_verbosity() == before
    assert list(warnings.filters) == filters


def test_a_run_folder_belongs_to_one_network(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model": "mlp", "train": {"parameters": {"w": [3, 2]}}})
    check_run(tmp_path, SPACE, MODEL)
    check_run(tmp_path, SPACE, MODEL)
    assert read_json(tmp_path / "config.json")["model"] == "mlp"
    assert Space.from_dict(read_json(tmp_path / "space.json")) == SPACE
    with pytest.raises(PliantError, match="belongs to another network"):
        check_run(tmp_path, SPACE, {"name": "Toy", "tensors": {"w": [3, 3]}})
    with pytest.raises(PliantError, match="another space"):
        check_run(tmp_path, Space([Knob("width:a", (1, 2))]), MODEL)


def test_a_folder_trained_with_another_network_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"train": {"parameters": {"w": [5, 2]}}})
    with pytest.raises(PliantError, match=r"belongs to another network\. choose another run folder"):
        check_run(tmp_path, SPACE, MODEL)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PliantError, match="not a JSON object"):
        check_run(tmp_path, SPACE, MODEL)
    (tmp_path / "file").touch()
    with pytest.raises(PliantError, match="cannot make the run folder"):
        check_run(tmp_path / "file", SPACE, MODEL)


def test_only_one_search_at_a_time(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(PliantError, match="another search is running"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
