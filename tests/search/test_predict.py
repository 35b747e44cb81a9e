import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from pliant.core import Config, Knob, Space
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.predict import features, fit, scales_of

SPACE = Space([Knob(f"width:l{i}", (8, 16, 24, 32)) for i in range(4)])


def encoded(rows: c.Codes) -> tuple[Array, Array]:
    return c.one_hot(SPACE, rows), c.levels(SPACE, rows)


def test_ridge_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    hot, levels = encoded(c.draw(SPACE, 30, rng))
    targets = rng.standard_normal(30) + hot @ rng.standard_normal(16)
    model = fit(hot, levels, targets)
    rows, view = features(hot, levels, model.pairs), model.scale.to(targets)
    reference = Reference(alpha=model.alpha).fit(rows, view)
    np.testing.assert_allclose(model.weights, reference.coef_, atol=1e-8)
    np.testing.assert_allclose(model.mean(hot, levels), model.scale.back(reference.predict(rows)), atol=1e-8)
    left_out = model.scale.back(cross_val_predict(Reference(alpha=model.alpha), rows, view, cv=LeaveOneOut()))
    assert model.error == pytest.approx(np.abs(left_out - targets).mean(), rel=1e-6)


def test_products_are_learned_through_logarithms() -> None:
    rng = np.random.default_rng(0)
    seen, new = c.draw(SPACE, 40, rng), c.draw(SPACE, 200, rng)

    def truth(rows: c.Codes) -> Array:
        return np.asarray(np.prod(1.0 + rows, axis=1), dtype=np.float64)

    model = fit(*encoded(seen), truth(seen))
    assert model.scale.logarithmic
    assert np.corrcoef(model.mean(*encoded(new)), truth(new))[0, 1] > 0.99


def test_draws_spread_around_the_mean_and_less_where_much_is_known() -> None:
    rng = np.random.default_rng(0)
    rows = c.draw(SPACE, 25, rng)
    hot, levels = encoded(rows)
    targets = hot @ rng.standard_normal(16) + 0.1 * rng.standard_normal(25)
    model = fit(hot, levels, targets - 50)  # far below zero: no plain logarithm
    drawn = model.draw(hot, levels, 2000, rng)
    assert drawn.shape == (2000, 25)
    if not model.scale.logarithmic:
        np.testing.assert_allclose(drawn.mean(axis=0), model.mean(hot, levels), atol=5 * drawn.std() / np.sqrt(2000))
    every = encoded(c.every(SPACE))
    assert drawn.std(axis=0).mean() < model.draw(*every, 200, rng).std(axis=0).mean()


def test_scales_are_inverse_and_growing() -> None:
    targets = np.asarray([0.1, 0.5, 3.0])
    for scale in scales_of(targets):
        np.testing.assert_allclose(scale.back(scale.to(targets)), targets)
        assert (np.diff(scale.to(targets)) > 0).all()


def test_fit_of_a_constant_predicts_it() -> None:
    hot, levels = encoded(c.draw(SPACE, 9, np.random.default_rng(0)))
    np.testing.assert_allclose(fit(hot, levels, np.full(9, 2.5)).mean(hot, levels), 2.5)


def test_fit_of_one_knob() -> None:
    space = Space([Knob("width:a", (1, 2, 3))])
    rows = c.encode(space, [Config({"width:a": i}) for i in (1, 2, 3)])
    model = fit(c.one_hot(space, rows), c.levels(space, rows), np.asarray([1.0, 2.0, 3.0]))
    assert model.pairs == 0
