"""Predictors beside the ridge: processes, boosted trees and texts, and how predictors are judged."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from pliant.core import Knob, Space
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.predict import reach
from pliant.search.predictors import fit_boosting, fit_process, fit_ridge, fit_text, quality
from pliant.search.predictors.boosting import bagged
from pliant.search.predictors.process import best_process
from pliant.search.predictors.quality import kendall_tau
from pliant.search.predictors.text import amounts, words_too

SPACE = Space(
    [Knob("depth:a", (1, 2, 3)), *(Knob(f"width:{i}", (1, 2, 3, 4), when={"depth:a": (2, 3)}) for i in range(3)),
     *(Knob(f"width:b{i}", (1, 2, 3, 4)) for i in range(3))]
)  # fmt: skip
FITS = pytest.mark.parametrize("fit", [fit_ridge, fit_process, fit_boosting])


def data(n: int, seed: int = 0, noise: float = 0.1) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    rows = c.draw(SPACE, n, rng)
    hot, levels = c.one_hot(SPACE, rows), c.levels(SPACE, rows)
    weights = np.random.default_rng(7).random(levels.shape[1]) + 0.5
    return hot, levels, np.tanh(levels @ weights / 2) + noise * rng.standard_normal(n)


def fitted(fit: Callable[..., Any], n: int, seed: int = 0) -> Any:
    hot, levels, targets = data(n, seed)
    return fit(hot, levels, targets=targets)


@FITS
def test_new_configs_are_ranked_and_intervals_hold_what_they_promise(fit: Callable[..., Any]) -> None:
    found, inside = [], []
    for seed in range(3):
        model = fitted(fit, 60, seed)
        hot, levels, truth = data(300, seed + 100)
        found.append(kendall_tau(model.mean(hot, levels), truth))
        low, high = model.interval(hot, levels, 0.9)
        inside.append(((low <= truth) & (truth <= high)).mean())
        narrow = model.interval(hot, levels, 0.5)
        assert (low <= narrow[0]).all()
        assert (narrow[1] <= high).all()
    assert np.mean(found) > 0.6
    assert 0.8 <= np.mean(inside) <= 0.98


@FITS
def test_deviations_say_how_far_off_predictions_are(fit: Callable[..., Any]) -> None:
    model = fitted(fit, 60)
    hot, levels, truth = data(300, 100)
    missed = (model.mean(hot, levels) - truth) / model.std(hot, levels)
    assert 0.6 < np.sqrt((missed**2).mean()) < 1.6


@FITS
def test_draws_are_plausible_functions(fit: Callable[..., Any]) -> None:
    model = fitted(fit, 60)
    hot, levels, truth = data(100, 100)
    drawn = model.draw(hot, levels, 64, np.random.default_rng(0))
    assert drawn.shape == (64, 100)
    assert np.abs(np.median(drawn, axis=0) - model.mean(hot, levels)).mean() < 0.1
    assert all(kendall_tau(row, truth) > 0.3 for row in drawn[:8])
    again = model.draw(hot, levels, 64, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, again)


@FITS
def test_fitting_is_deterministic(fit: Callable[..., Any]) -> None:
    hot, levels, targets = data(40)
    asked = data(30, 5)[:2]
    np.testing.assert_array_equal(*(fit(hot, levels, targets=targets).mean(*asked) for _ in range(2)))


def test_process_equals_scikit_learn_and_leaves_out_exactly() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((25, 3))
    targets = np.sin(rows).sum(axis=1) - 5
    model = best_process(rows, targets)
    view = (model.scale.to(targets) - model.middle) / model.unit
    kernel = ConstantKernel(model.signal) * RBF(model.length) + WhiteKernel(model.noise)
    reference = GaussianProcessRegressor(kernel, optimizer=None).fit(rows, view)
    mean, std = reference.predict(rows + 0.1, return_std=True)
    ours, spread = model._belief(rows + 0.1)
    np.testing.assert_allclose((ours - model.middle) / model.unit, mean, atol=1e-6)
    np.testing.assert_allclose(spread / model.unit, std, atol=1e-6)
    errors = []
    for left in range(25):
        rest = np.arange(25) != left
        guess = GaussianProcessRegressor(kernel, optimizer=None).fit(rows[rest], view[rest]).predict(rows[[left]])
        errors.append(abs(model.scale.back(guess * model.unit + model.middle)[0] - targets[left]))
    assert model.error == pytest.approx(np.mean(errors), rel=1e-4)


def test_process_follows_an_objective_that_is_smooth_in_the_logarithm() -> None:
    hot, levels, _ = data(60)
    targets = np.exp(3 * levels.mean(axis=1))
    model = fit_process(hot, levels, targets=targets)
    assert model.inner.scale.logarithmic  # type: ignore[attr-defined]
    assert (model.interval(hot, levels)[0] > -1e-6).all()


def test_reach_is_the_conformal_quantile() -> None:
    misses = np.arange(1.0, 20.0)  # 19 points
    assert reach(misses, 0.9) == 18  # the 18th of 19: 0.9 * 20
    assert reach(misses, 0.5) == 10
    assert reach(misses[:3], 0.9) == 3
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 1"):
        reach(misses, 1)


def test_too_few_points_are_refused() -> None:
    hot, levels, targets = data(3)
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        fit_process(hot[:1], levels[:1], targets=targets[:1])
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        fit_boosting(hot, levels, targets=targets)


def test_boosting_sees_what_no_line_and_no_smooth_function_is() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (400, 6)).astype(float)
    targets = (rows[:, 0] != rows[:, 1]) * 1.0 + 0.05 * rng.standard_normal(400)
    assert kendall_tau(bagged(rows[:300], targets[:300]).mean(rows[300:]), targets[300:]) > 0.4


def test_quality_is_judged_on_left_out_points_only() -> None:
    hot, levels, targets = data(60)
    found = quality(fit_ridge, (hot, levels), targets=targets)
    assert found.tau > 0.5
    assert 0.7 <= found.coverage <= 1
    assert found.points == 60
    noise = np.random.default_rng(1).standard_normal(60)
    assert abs(quality(fit_process, (hot, levels), targets=noise).tau) < 0.4  # in sample it would be high
    assert set(found.to_dict()) == {"tau", "error", "coverage", "share", "points"}
    with pytest.raises(ValueError, match="60 points in 40 folds"):
        quality(fit_ridge, (hot, levels), targets=targets, folds=40)


# -- texts ------------------------------------------------------------------------------------------------------------


def text(kind: str, width: int, depth: int) -> str:
    gemm = f"Gemm in 1x64 weights {width}x64 weights {width} out 1x{width}"
    conv = f"Conv group 1 in 1x4x8x8 weights {width}x4x3x3 out 1x{width}x8x8"
    layers = {"mlp": [gemm], "conv": [conv, "Relu in 1x4 out 1x4"], "mixed": [conv, gemm]}[kind] * depth
    return "\n".join([*layers, "Gemm in 1x8 weights 10x8 out 1x10"]) + "\n"


def space(kind: str) -> tuple[list[str], Array]:
    sizes = [(width, depth) for width in (2, 4, 8, 16, 32) for depth in (1, 2, 3)]
    wide = {"mlp": 0.0, "mixed": 0.1, "conv": 0.3}[kind]
    quality = [np.log2(width) / 5 + 0.05 * depth + wide for width, depth in sizes]
    return [text(kind, *size) for size in sizes], np.asarray(quality)


def test_texts_predict_in_a_space_that_was_never_seen() -> None:
    (one, low_values), (other, high_values), (others, truth) = space("mlp"), space("conv"), space("mixed")
    texts, values = [*one, *other], np.concatenate([low_values, high_values])
    model = fit_text(texts, targets=values, groups=["mlp"] * 15 + ["conv"] * 15)
    assert kendall_tau(model.mean(others), truth) > 0.6
    assert model.std(others).shape == (15,)
    assert model.draw(others, 3, np.random.default_rng(0)).shape == (3, 15)
    low, high = model.interval(texts)
    assert ((low <= values) & (values <= high)).mean() > 0.8


def test_amounts_are_read_off_the_lines() -> None:
    found = 2 ** amounts(["Conv group 1 in 1x3x8x8 weights 6x3x3x3 out 1x6x4x4\nRelu in 1x6x4x4 out 1x6x4x4\n"])[0] - 1
    np.testing.assert_allclose(found, [162, 162 * 16, 192 + 3 * 96, 2, 1, 6, 6, 16, 16])
    assert np.isfinite(amounts([""])).all()


def test_words_tell_kinds_apart_and_nearby_numbers_do_not() -> None:
    rows = words_too(["Gelu in 1x64 out 1x64\n", "Tanh in 1x64 out 1x64\n", "Gelu in 1x60 out 1x60\n"])[:, 9:]
    np.testing.assert_allclose(rows[0], rows[2])
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_texts_and_groups_must_fit() -> None:
    texts, values = space("mlp")
    with pytest.raises(ValueError, match="at least 10 texts and a target for each, got 3 and 3"):
        fit_text(texts[:3], targets=values[:3])
    with pytest.raises(ValueError, match="one group for each text, got 2 for 15"):
        fit_text(texts, targets=values, groups=["a", "b"])
