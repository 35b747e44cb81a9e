"""The commands in one process, on data and networks that take a second."""

import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.cli import main
from pliant.cli.commands import choose, parse_bound, parse_shape
from pliant.core import Config
from pliant.search import Axis, Front, Point

USER = """
from torch import nn

def make(width=12):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

def wrong_shape():
    return nn.Linear(3, 2)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER)
    return path


@pytest.fixture(scope="module")
def run(user: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is trained and searched."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(train_args(f"{user}:make", path)) == 0
    search = ["search", str(path), "--objectives", "accuracy,parameters", "--trials", "4", "--json"]
    assert main(search) == 0
    return path


def train_args(model: str, run: Path, *more: str) -> list[str]:
    return ["train", model, "--data", "digits", "--run", str(run), "--epochs", "1", "--limit", "200", *more]


def answer(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> Any:
    """What a command prints with --json, which must be all it prints."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("pliant: error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_look_reports_what_bends_and_what_it_costs(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, ["look", f"{user}:make", "--data", "digits", "--arg", "width=16"])
    assert found["cost"]["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert [group["units"] for group in found["report"]["groups"]] == [16]
    assert found["sub_networks"] > 1
    assert main(["look", "mlp", "--shape", "1,8,8", "--arg", "hidden=[16]", "--arg", "classes=3"]) == 0
    assert "width" in capsys.readouterr().out


def test_train_writes_a_run_that_knows_what_it_is(run: Path, user: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == f"{user}:make"
    assert (config["data"], config["limit"], config["epochs"], config["seed"]) == ("digits", 200, 1, 0)
    assert (run / "model").is_dir()
    assert (run / "metrics.jsonl").is_file()


def test_train_again_keeps_what_is_there(run: Path, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "model").iterdir()}
    found = answer(capsys, train_args(f"{user}:make", run))
    assert {path: path.stat().st_mtime_ns for path in (run / "model").iterdir()} == before
    assert 0 <= found["validation"] <= 1


def test_search_goes_on_and_tells_the_front(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, ["search", str(run), "--objectives", "accuracy,parameters", "--trials", "4"])
    assert found["trials"] == 4
    assert all(set(point["values"]) == {"accuracy", "parameters"} for point in found["front"])


def test_compile_and_run_without_torch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pliant_runtime import load

    out = tmp_path / "art"
    found = answer(capsys, ["compile", str(run), "--out", str(out), "--best", "accuracy"])
    family = load(out)
    assert [dict(entry.config) for entry in family.entries] == found["configs"]
    assert family.run(np.zeros((3, 1, 8, 8), np.float32), preprocessed=True).shape == (3, 10)
    assert "exists already" in failure(capsys, ["compile", str(run), "--out", str(out)])
    assert len(answer(capsys, ["compile", str(run), "--out", str(out), "--pick", "2", "--replace"])["configs"]) <= 2


def test_compile_shares_weights_as_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pliant_runtime import load

    forms = {}
    for layout in ("slices", "shells"):
        out = tmp_path / layout
        answer(capsys, ["compile", str(run), "--out", str(out), "--layout", layout])
        family = load(out)
        assert family.program.layout is not None
        forms[layout] = family.program.layout.form
        assert family.run(np.zeros((3, 1, 8, 8), np.float32), preprocessed=True).shape == (3, 10)
    assert forms == {"slices": "slices", "shells": "shells"}


def test_report_reads_the_test_split_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, ["report", str(run)])
    text = Path(found["report"]).read_text()
    assert "Pareto front" in text
    assert "What each sub-network loses" in text
    assert len(text) < 200_000
    kept = (run / "test.json").read_text()
    answer(capsys, ["report", str(run)])
    assert (run / "test.json").read_text() == kept


def test_report_trains_points_alone_and_compares(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, ["report", str(run), "--separate", "1"])
    assert "<h2>Against separately trained networks" in Path(found["report"]).read_text()
    rows = json.loads((run / "separate.json").read_text())["networks"]
    assert 1 <= len(rows) <= 2  # the whole network may be the point
    assert {row["epochs"] for row in rows} == {1}
    assert "--separate must be at least 1" in failure(capsys, ["report", str(run), "--separate", "-1"])


def test_it_runs_as_a_module_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pliant", "methods", "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pliant", run_name="__main__")
    assert ended.value.code == 0
    assert "Nested" in capsys.readouterr().out


def test_methods_lists_facts(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, ["methods"])["methods"]
    assert all({"name", "title", "year", "room", "laws"} <= set(method) for method in found)
    assert found


# bad input


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["look", "nosuchnet"], "choose one of"),
        (["look", "{user}:nosuch"], "choose one of make, wrong_shape"),
        (["look", "{user}"], "NAME is one of make, wrong_shape"),
        (["look", "nowhere/mine.py:make"], "no such file"),
        (["look", "{user}:make"], "Give --data D, or --shape"),
        (["look", "{user}:make", "--shape", "a,b"], "--shape takes whole numbers"),
        (["look", "{user}:make", "--arg", "depth=3", "--shape", "64"], "takes no argument 'depth'; it takes width"),
        (["look", "{user}:make", "--data", "digits", "--shape", "64"], "--data or --shape, not both"),
        (["train", "{user}:make", "--data", "nosuchdata", "--run", "{new}"], "digits"),
        (["train", "{user}:make", "--data", "digits", "--run", "{new}", "--recipe", "nosuch"], "no recipe called"),
        (
            ["train", "{user}:make", "--data", "digits", "--run", "{new}", "--epochs", "0"],
            "--epochs must be at least 1",
        ),
        (["train", "{user}:make", "--data", "digits", "--run", "{new}", "--lr", "-1"], "--lr must be positive"),
        (["train", "{user}:make", "--data", "digits"], "--run"),
        (["train", "{user}:make", "--data", "digits", "--run", "{new}", "--epochs", "many"], "--epochs"),
        (["search", "{new}"], "pliant train MODEL"),
        (["search", "{run}", "--trials", "0"], "--trials must be at least 1"),
        (["search", "{run}", "--objectives", "speed"], "speed"),
        (["search", "{run}", "--searcher", "magic"], "no searcher called 'magic'; choose one of Design, Evolution, Gp"),
        (["search", "{run}", "--workers", "many"], "--workers takes a number or ray, got 'many'"),
        (["search", "{run}", "--on-failure", "ignore"], "on_failure is 'stop' or 'skip'"),
        (["search", "{run}", "--hardware", "toaster"], "choose cpu"),
        (["search", "{run}", "--threads", "0"], "threads must be"),
        (["compile", "{run}", "--out", "{new}", "--where", "parameters=1"], "--where takes a bound"),
        (["compile", "{run}", "--out", "{new}", "--where", "parameters>=1"], "turn the sign"),
        (["compile", "{run}", "--out", "{new}", "--where", "parameters<=1"], "the closest has"),
        (["compile", "{run}", "--out", "{new}", "--where", "latency_ms<=1"], "no objective 'latency_ms'"),
        (["compile", "{run}", "--out", "{new}", "--pick", "0"], "at least one point"),
        (["compile", "{run}", "--out", "{new}", "--pick", "1", "--best", "accuracy"], "--best or --pick"),
        (["compile", "{run}", "--out", "{new}", "--layout", "rows"], "--layout is one of auto, slices, shells"),
        (["report", "{new}"], "no run folder"),
        (["nosuchcommand"], "nosuchcommand"),
        (["look", "mlp", "--nosuchoption"], "nosuchoption"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    argv: list[str], said: str, user: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert said in failure(capsys, [word.format(user=user, run=run, new=new) for word in argv])
    assert not new.exists()


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "nosuchnet", "--json"]) == 2
    captured = capsys.readouterr()
    assert "choose one of" in json.loads(captured.out)["error"]
    assert captured.err.count("\n") == 1


def test_debug_gives_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nosuchnet"):
        main(["look", "nosuchnet", "--debug"])
    monkeypatch.setenv("PLIANT_DEBUG", "1")
    with pytest.raises(ValueError, match="nosuchnet"):
        main(["look", "nosuchnet"])


def save(path: Path, x: Any, y: Any) -> str:
    np.savez(path, x_train=np.asarray(x, np.float32), y_train=np.asarray(y))
    return str(path)


def bad_data(tmp_path: Path, kind: str) -> str:
    x, y = np.zeros((40, 64), np.float32), np.arange(40) % 10
    if kind == "empty":
        return save(tmp_path / "d.npz", x[:0], y[:0])
    if kind == "nan":
        x[3, 5] = np.nan
    if kind == "lengths":
        y = y[:7]
    if kind == "labels":
        y = np.where(y == 3, -4, y)
    if kind == "text":
        (tmp_path / "d.npz").write_text("not a zip")
        return str(tmp_path / "d.npz")
    return save(tmp_path / "d.npz", x, y)


@pytest.mark.parametrize("kind", ["empty", "nan", "lengths", "labels", "text"])
def test_bad_data_is_one_line_and_leaves_nothing(
    kind: str, user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", f"{user}:make", "--data", bad_data(tmp_path, kind), "--run", str(tmp_path / "run")]
    failure(capsys, argv)
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_more_classes_than_outputs_is_one_line(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    data = save(tmp_path / "d.npz", rng.normal(size=(60, 64)), np.arange(60) % 12)
    argv = ["train", f"{user}:make", "--data", data, "--run", str(tmp_path / "run"), "--epochs", "1"]
    assert "[2, 10] for two samples, the data have 12 classes" in failure(capsys, argv)
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_fit_the_data_is_one_line(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure(capsys, train_args(f"{user}:wrong_shape", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_is_refused(run: Path, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.rglob("*"))
    assert "this run has model" in failure(capsys, train_args("mlp", run))
    assert "this run has args" in failure(capsys, train_args(f"{user}:make", run, "--arg", "width=16"))
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_front_of_another_network_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = (run / "front.json").read_text()
    try:
        text = kept.replace('"width:', '"width:other.')
        (run / "front.json").write_text(text)
        out = tmp_path / "art"
        assert "front.json is of another network" in failure(capsys, ["compile", str(run), "--out", str(out)])
        assert not out.exists()
    finally:
        (run / "front.json").write_text(kept)


def test_a_file_in_the_way_of_a_folder_is_one_line(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    failure(capsys, train_args(f"{user}:make", tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o555)
    try:
        failure(capsys, train_args(f"{user}:make", tmp_path / "run"))
    finally:
        tmp_path.chmod(0o755)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pliant.learn.train"], "evaluate", interrupted)
        argv = train_args(f"{user}:make", tmp_path / "run")
        capsys.readouterr()
        assert main(argv) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert main(argv) == 0
    assert (tmp_path / "run" / "model").is_dir()


# small parts


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("latency_ms<=2", ("latency_ms", True, 2.0)),
        (" accuracy >= 0.9 ", ("accuracy", False, 0.9)),
        ("f<1e6", ("f", True, 1e6)),
    ],
)
def test_bounds(text: str, bound: tuple[str, bool, float]) -> None:
    assert parse_bound(text) == bound


@pytest.mark.parametrize("text", ["latency", "a=2", "<=2", "a<=x", "a<=2<=3", ""])
def test_bad_bounds(text: str) -> None:
    with pytest.raises(ValueError, match="--where takes a bound"):
        parse_bound(text)


def test_shapes() -> None:
    assert parse_shape("1,28,28") == parse_shape("1x28x28") == (1, 28, 28)
    with pytest.raises(ValueError, match="positive"):
        parse_shape("1,0")


def test_choose_by_best_bounds_and_number() -> None:
    pairs = [(0.8, 1.0), (0.9, 2.0), (0.95, 3.0)]
    points = [Point(Config({"w": i}), {"accuracy": a, "latency_ms": b}) for i, (a, b) in enumerate(pairs)]
    front = Front(points, (Axis("accuracy", maximise=True), Axis("latency_ms")))

    def kept(**options: Any) -> list[int]:
        chosen = choose(front, **{"best": None, "where": (), "pick": None, **options})
        return [int(point.config["w"]) for point in chosen]

    assert kept() == [0, 1, 2]
    assert kept(best="accuracy", where=["latency_ms<=2.5"]) == [1]
    assert kept(where=["accuracy>=0.85"]) == [1, 2]
    assert kept(pick=2) == [0, 2]
