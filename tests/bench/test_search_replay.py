"""Rows on measured sub-networks, on this machine and on texts: what they count, their rivals, their data."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import _nas as nas
from bench import _rivals as rivals
from bench import hardware_table, onnx_net, search_predictor, search_replay
from pliant.core import PliantError
from pliant.search import codes as c
from pliant.search.pareto import hypervolume
from pliant.search.predictors import fit_ridge

needs_data = pytest.mark.skipif(
    not (Path(os.environ.get("PLIANT_DATA", "data")) / "nas").is_dir(), reason="PLIANT_DATA has no nas folder"
)
REFERENCE = np.asarray([2.0, 2.5])


def simple(codes: nas.Codes) -> nas.Array:
    """Two costs that fight each other: all small, all large."""
    return np.stack([codes.mean(axis=1), 2 - codes.mean(axis=1) + 0.1 * codes[:, 0]], axis=1)


# -- data -------------------------------------------------------------------------------------------------------------


@needs_data
def test_rows_are_distinct_sub_networks_of_the_space() -> None:
    data, space = nas.rows(), nas.space()
    assert data.codes.shape == (1356, nas.KNOBS)
    assert len(np.unique(data.codes, axis=0)) == 1356
    for row in data.codes[:20]:
        config = c.decode(space, row)
        assert space.validate(config) == config
        np.testing.assert_array_equal(c.encode(space, [config])[0], row)
    assert 70 < data.accuracy.min() < data.accuracy.max() < 78


def test_masked_leaves_out_what_the_depth_leaves_out() -> None:
    codes = np.zeros((1, nas.KNOBS), dtype=np.int64)
    codes[0, 1] = 2  # the second stage keeps all four blocks, the others two
    kernels = nas.masked(codes)[0, nas.STAGES : nas.STAGES + nas.PLACES].reshape(nas.STAGES, nas.BLOCKS)
    np.testing.assert_array_equal(kernels[0], [0, 0, -1, -1])
    np.testing.assert_array_equal(kernels[1], [0, 0, 0, 0])
    np.testing.assert_array_equal(nas.masked(nas.masked(codes)), nas.masked(codes))


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    with pytest.raises(PliantError, match="set PLIANT_DATA"):
        nas.rows.__wrapped__()


@pytest.mark.slow
@needs_data
def test_the_surrogate_is_close_to_the_rows_and_its_noise_is_fixed() -> None:
    data = nas.rows()
    costs = nas.surrogate().costs(data.codes)
    assert np.abs(-costs[:, 0] - data.accuracy).mean() < 0.1
    np.testing.assert_allclose(costs[:, 1], data.macs, atol=1e-6)
    np.testing.assert_array_equal(nas.surrogate().costs(data.codes[:5]), costs[:5])


# -- rivals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breed", [rivals.published, rivals.even])
def test_children_are_valid_and_mostly_their_parents(breed: rivals.Operators) -> None:
    rng = np.random.default_rng(0)
    mothers, fathers = rng.integers(0, 3, (2, 40, nas.KNOBS))
    children = breed(mothers, fathers, rng)
    assert children.shape == (80, nas.KNOBS)
    assert 0 <= children.min() <= children.max() <= 2
    low, high = (np.concatenate([side, side]) for side in (np.minimum(mothers, fathers), np.maximum(mothers, fathers)))
    assert ((children >= low) & (children <= high)).mean() > 0.9
    twins = breed(mothers, mothers, rng)
    assert (twins == np.concatenate([mothers, mothers])).mean() > 0.95


def test_nsga2_asks_as_often_as_it_may_and_finds_more_than_chance() -> None:
    asked: list[nas.Array] = []

    def costs(codes: nas.Codes) -> nas.Array:
        asked.append(simple(codes))
        return asked[-1]

    last = rivals.nsga2(costs, 420, rng=np.random.default_rng(0), breed=rivals.even)
    found = np.concatenate(asked)
    assert len(found) == 420
    assert last.shape == (rivals.POPULATION, nas.KNOBS)
    random = simple(np.random.default_rng(1).integers(0, 3, (420, nas.KNOBS)))
    assert hypervolume(found, REFERENCE) > hypervolume(random, REFERENCE)


def test_linas_measures_populations_that_its_predictors_chose() -> None:
    asked: list[nas.Codes] = []

    def costs(codes: nas.Codes) -> nas.Array:
        asked.append(codes)
        return simple(codes) + 1

    rivals.linas(costs, 100, rng=np.random.default_rng(0), inner=1500)
    assert [len(codes) for codes in asked] == [50, 50]
    first, second = (hypervolume(simple(codes), REFERENCE) for codes in asked)
    assert second > first


# -- what the rows count ----------------------------------------------------------------------------------------------


def test_courses_count_evaluations_to_a_level() -> None:
    assert search_replay.reached([1.0, 2.0, 2.0, 3.0], 2.0) == 2
    assert search_replay.reached([1.0, 2.0], 5.0) == 3


def test_a_course_is_the_hypervolume_after_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        def costs(self, codes: nas.Codes) -> nas.Array:
            return np.asarray([[-75.0, 300.0], [-74.0, 350.0], [-76.0, 300.0], [-72.0, 200.0]])[: len(codes)]

    monkeypatch.setattr(nas, "surrogate", Fixed)
    record = search_replay.Recorder()
    costs = record(np.zeros((4, nas.KNOBS), dtype=np.int64))
    np.testing.assert_allclose(record.course(), [hypervolume(costs[: n + 1], nas.REFERENCE) for n in range(4)])


def test_replay_makes_its_figures_from_courses(monkeypatch: pytest.MonkeyPatch) -> None:
    courses = {"default": [1.0, 4.0, 6.0], "nsga2": [1.0, 2.0], "linas": [2.0, 5.0]}

    def fake(job: tuple[str, int, int]) -> dict[str, Any]:
        return {"course": courses[job[0]], "cpu_seconds": 1.0}

    monkeypatch.setattr(search_replay, "in_workers", lambda work, jobs: [fake(job) for job in jobs])
    monkeypatch.setattr(search_replay, "seconds_of", lambda count: 1.5)
    monkeypatch.setattr(nas, "surrogate", lambda: nas.Surrogate(None, np.zeros(3), np.zeros(3)))
    outcome = search_replay.run([0, 1], {"default": 3, "nsga2": 2, "linas": 2})
    assert outcome.figures["evals_to_nsga2_2"] == 2
    assert outcome.figures["evals_to_linas_2"] == 3
    assert outcome.figures["seconds_100k"] == 1.5
    assert set(outcome.baseline) <= set(outcome.figures)
    assert outcome.cpu_seconds == 6.0


@needs_data
def test_predictor_row_judges_on_rows_that_were_not_learned_from() -> None:
    data = nas.rows()
    found = search_predictor.judged(fit_ridge, data.codes, data.accuracy, size=50, splits=2)
    assert found["tau"] > 0.83
    assert 0.7 < found["coverage"] < 1
    noise = np.random.default_rng(0).standard_normal(len(data.accuracy))
    assert abs(search_predictor.judged(fit_ridge, data.codes, noise, size=50, splits=2)["tau"]) < 0.1


def test_hardware_table_states_its_worst_family(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"rank_correlation": 1.0, "median_relative_error": 0.02, "seconds": 50.0, "noise": 0.01, "range": 6.0}
    good |= {"stated_error": 0.02, "flops_rank_correlation": 0.9, "flops_median_relative_error": 0.2}
    rows = {"a": good, "b": good | {"rank_correlation": 0.9, "median_relative_error": 0.1}}
    monkeypatch.setattr(hardware_table, "families", lambda: rows)
    monkeypatch.setattr(hardware_table, "judged", lambda net, *rest: net)
    outcome = hardware_table.run(names=("a", "b"))
    assert (outcome.figures["rank_correlation"], outcome.figures["median_relative_error"]) == (0.9, 0.1)
    assert set(outcome.baseline) <= set(outcome.figures)


def test_random_networks_of_all_spaces_run_and_are_drawn_again_equal() -> None:
    for space in onnx_net.SPACES:
        for number in range(3):
            one, other = onnx_net.drawn(space, number).eval(), onnx_net.drawn(space, number).eval()
            x = torch.randn(2, 1, 8, 8)
            assert one(x).shape == (2, 10)
            torch.testing.assert_close(one(x), other(x))


def test_texts_carry_over_to_a_space_that_is_left_out() -> None:
    line = "Gemm in 1x64 weights {0}x64 weights {0} out 1x{0}\n"
    widths = (2, 3, 4, 6, 8, 12, 16, 24)
    texts = {space: [line.format(width) * depth for width in widths] for depth, space in enumerate("abc", 1)}
    values = {space: np.log2(widths) + depth for depth, space in enumerate("abc")}
    taus = onnx_net.transferred(texts, values, "b")
    assert taus["text"] > 0.8
    assert set(taus) == {"text", "parameters", "flops", "random"}
