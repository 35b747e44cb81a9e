"""The rows about search, at a size that takes seconds."""

import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as rows
from bench import _bars, deep_architect, hw_aware_search, search_front, search_resume
from bench._exhaustive import Every, Restricted, Table, part_of
from pliant.core import Config, Knob, Space
from pliant.search import AskTell, Axis, Front, Point, Random, Ridge

WIDE = Space([*(Knob(f"width:l{i}", (8, 16, 24, 32)) for i in range(6)), Knob("depth:b", (False, True))])


def values_of(config: Mapping[str, int]) -> dict[str, float]:
    widths = np.asarray([config[f"width:l{i}"] for i in range(6) if f"width:l{i}" in config], dtype=float)
    flops = float((widths[1:] * widths[:-1]).sum() * (1 + config["depth:b"]))
    return {"accuracy": 0.9 - float(np.exp(-np.log(widths).mean() / 2)) + 0.02 * config["depth:b"], "flops": flops}


@pytest.fixture(scope="module")
def table() -> Table:
    small = Space([*WIDE.knobs[:3], WIDE.knobs[-1]])
    points = [Point(config, values_of(config)) for config in small.configs()]
    return Table.of(small, Front(points, [Axis("accuracy", True), Axis("flops")]))


def test_a_part_of_a_space_keeps_the_ends() -> None:
    part = part_of(WIDE, 1000)
    assert WIDE.size == 8192
    assert part.size == 1024
    assert (part.smallest(), part.largest()) == (WIDE.smallest(), WIDE.largest())
    assert part_of(WIDE, 10**6) == WIDE
    assert part_of(Space([Knob("a", (1, 2, 3, 4))]), 3)["a"].choices == (1, 3, 4)


def test_shares_are_of_the_exact_front(table: Table) -> None:
    assert table.share(table.costs) == pytest.approx(1)
    assert table.share([table.space.smallest()]) < 0.5
    assert table.share(table.walk(Ridge(initial=8, draws=4), 30, 0)) > 0.9
    assert len(set(table.walk(Random(), 500, 0))) == table.space.size == 128
    judging = Front([Point(Config({"a": 1}), {"x": 1.0, "y": 2.0})], [Axis("x"), Axis("y")])
    assert Table.of(Space([Knob("a", (1,))]), judging, 1).costs == {Config({"a": 1}): (1.0,)}


def test_every_config_in_turn() -> None:
    loop = AskTell(Every(), part_of(WIDE, 1), objectives=1)
    asked = []
    for _ in range(5):
        asked.append(loop.ask())
        loop.tell(asked[-1], [0.0])
    assert asked == list(part_of(WIDE, 1).configs())[:5]


def test_a_restricted_family_is_the_family_otherwise() -> None:
    class Net:
        name, example, space = "net", 3, WIDE

    net = Restricted(Net(), part_of(WIDE, 1000))
    assert (net.name, net.example, net.space.size) == ("net", 3, 1024)


def test_rows_about_search_have_their_figures(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(jobs: object) -> list[list[Config]]:
        return [each.walk(proposer, n, seed) for each, proposer, n, seed in jobs]  # type: ignore[attr-defined]

    monkeypatch.setattr("bench._exhaustive.replayed", here)
    monkeypatch.setattr("bench.deep_architect.replayed", here)
    shares = search_front.judged(table, evaluations=12, seeds=(0,))
    assert set(shares) == {"hypervolume_share", "random_hypervolume_share"}
    figures, baseline, population = hw_aware_search.contest(table, evaluations=12, seeds=(0,), tuning=(1,))
    assert set(hw_aware_search.REQUIRED) <= set(figures)
    assert figures["gain_over_rival"] == pytest.approx(
        100 * (figures["hypervolume_share"] - baseline["linas_hypervolume_share"])
    )
    assert population in hw_aware_search.POPULATIONS
    told = deep_architect.contest(
        Table(table.space, {c: row[:1] for c, row in table.costs.items()},
              {c: {**v, "test": v["accuracy"]} for c, v in table.values.items()}),
        evaluations=12, seeds=(0,),
    )  # fmt: skip
    assert set(told) == {"ours", "smbo", "tree", "mcts", "random"}


def test_the_space_of_small_networks_builds_what_it_says() -> None:
    space = deep_architect.space()
    assert space.size == 252
    import torch

    for config in [space.smallest(), space.largest(), *list(space.configs())[::50]]:
        module = space.build(config).eval()
        assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_every_row_has_a_module_and_a_bar() -> None:
    barred = {bar.row for bar in _bars.BARS}
    for row in ("search-front", "search-resume", "hw-aware-search", "deep-architect"):
        assert row in rows.ROWS
        assert row in barred


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import Net, wide_space, wide_values
from bench.search_resume import MARK
from pliant.search import Objective, Random, SearchSettings, search

run, log, trials = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def quality(module, config):
    with log.open("a") as file:
        file.write(config.to_json() + "\\n")
    time.sleep(0.05)
    return wide_values(config)[0]

objectives = (Objective(MARK, quality, maximise=True), Objective("time", lambda m, c: wide_values(c)[1]))
search(Net(wide_space()), objectives=objectives, n_trials=trials, run=run, settings=SearchSettings(proposer=Random()))
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(__file__).parents[1] / "search"
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(tests=str(tests)))
    root = Path(__file__).parents[2]

    def started(run: Path, log: Path, trials: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(script), str(run), str(log), str(trials)]
        return subprocess.Popen(command, cwd=root, env={"PYTHONPATH": f"{root}:{root / 'runtime'}"})

    monkeypatch.setattr(search_resume, "started", started)
    monkeypatch.setattr(random.Random, "uniform", lambda self, low, high: low + (high - low) * 0.1 * self.random())


@pytest.mark.slow
def test_kills_are_counted_and_nothing_is_lost(driver: None, tmp_path: Path) -> None:
    found = search_resume.compared(tmp_path, trials=14, kills=3, seed=1)
    assert found["kills"] == 3
    assert found["lost_evaluations"] == found["repeated_evaluations"] == 0
    assert found["same_front"] == 1
    assert found["trials"] == 14
