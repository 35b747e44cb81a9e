from collections.abc import Sequence

import numpy as np
import pytest

from pliant.search.pareto import hypervolume, improvements, nondominated


def test_nondominated_by_hand() -> None:
    costs = np.asarray([[1.0, 5.0], [2.0, 3.0], [2.0, 4.0], [4.0, 1.0], [4.0, 1.0], [5.0, 5.0]])
    assert nondominated(costs).tolist() == [True, True, False, True, True, False]


def test_nondominated_keeps_equal_rows_and_drops_weakly_worse_ones() -> None:
    assert nondominated(np.ones((3, 2))).tolist() == [True, True, True]
    assert nondominated(np.asarray([[1.0, 2.0], [1.0, 3.0]])).tolist() == [True, False]
    assert nondominated(np.zeros((0, 2))).tolist() == []


def test_nondominated_equals_definition() -> None:
    costs = np.random.default_rng(0).integers(0, 5, (60, 3)).astype(float)

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    naive = [not any(dominates(other, row) for other in costs.tolist()) for row in costs.tolist()]
    assert nondominated(costs).tolist() == naive


def test_hypervolume_by_hand() -> None:
    # 3 x 1 + 2 x 2 + 1 x 1, seen as strips up to the corner (4, 5)
    costs = np.asarray([[1.0, 4.0], [2.0, 2.0], [3.0, 1.0], [3.5, 3.0]])
    assert hypervolume(costs, np.asarray([4.0, 5.0])) == 3 + 4 + 1
    assert hypervolume(np.asarray([[1.0], [2.0]]), np.asarray([5.0])) == 4
    assert hypervolume(np.asarray([[1.0, 1.0, 1.0]]), np.asarray([2.0, 3.0, 4.0])) == 1 * 2 * 3
    boxes = np.asarray([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert hypervolume(boxes, np.asarray([2.0, 2.0, 2.0])) == 4 + 2 - 1


def test_hypervolume_ignores_what_is_not_better_than_the_reference() -> None:
    corner = np.asarray([1.0, 1.0])
    assert hypervolume(np.asarray([[1.0, 0.0], [0.0, 2.0]]), corner) == 0
    assert hypervolume(np.zeros((0, 2)), corner) == 0


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_hypervolume_equals_counting(axes: int) -> None:
    costs = np.random.default_rng(axes).integers(0, 6, (12, axes)).astype(float)
    cells = np.indices((6,) * axes).reshape(axes, -1).T + 0.5
    inside = np.all(costs[None] <= cells[:, None], axis=2)
    counted = int(np.any(inside, axis=1).sum())
    assert hypervolume(costs, np.full(axes, 6.0)) == counted


def test_improvements_are_differences_of_hypervolume() -> None:
    rng = np.random.default_rng(0)
    front, candidates, corner = rng.random((7, 2)), rng.random((40, 2)) * 1.2, np.asarray([0.9, 0.8])
    before = hypervolume(front, corner)
    expected = [hypervolume(np.vstack([front, row]), corner) - before for row in candidates]
    np.testing.assert_allclose(improvements(candidates, front, corner), expected, atol=1e-12)


def test_improvements_in_three_objectives_count_corners() -> None:
    corners = np.indices((4, 4, 4)).reshape(3, -1).T / 4 + 0.125
    front, candidates = np.asarray([[0.5, 0.5, 0.5]]), np.asarray([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    gains = improvements(candidates, front, np.ones(3), corners)
    np.testing.assert_allclose(gains, [0.125, 0.0, 0.875])
    with pytest.raises(ValueError, match="corners"):
        improvements(candidates, front, np.ones(3))
