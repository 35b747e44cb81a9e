import numpy as np
import torch

from pliant.core import Config, Knob, Space
from pliant.search import codes as c

SPACE = Space([Knob("width:a", (8, 16, 24)), Knob("depth:b", (False, True)), Knob("width:c", (4,))])


def test_codes_and_configs_are_inverse() -> None:
    configs = list(SPACE.configs())
    rows = c.encode(SPACE, configs)
    assert [c.decode(SPACE, row) for row in rows] == configs
    np.testing.assert_array_equal(rows, c.every(SPACE))


def test_one_hot_equals_the_encoding_of_the_space() -> None:
    generator = torch.Generator().manual_seed(0)
    configs = [SPACE.sample(generator) for _ in range(20)]
    expected = np.stack([SPACE.encode(config) for config in configs])
    np.testing.assert_array_equal(c.one_hot(SPACE, c.encode(SPACE, configs)), expected)


def test_levels_run_from_least_to_all() -> None:
    ends = c.encode(SPACE, [SPACE.smallest(), SPACE.largest()])
    np.testing.assert_array_equal(c.levels(SPACE, ends), [[-1, -1, -1], [1, 1, -1]])


def test_drawn_crossed_and_mutated_rows_stay_in_the_space() -> None:
    rng = np.random.default_rng(0)
    drawn = c.draw(SPACE, 500, rng)
    changed = c.mutate(SPACE, drawn, rng)
    for rows in (drawn, changed, c.cross(SPACE, drawn, 50, rng)):
        assert (rows >= 0).all()
        assert (rows < c.counts_of(SPACE)).all()
    assert len(c.new_rows(drawn, drawn[:0])) == SPACE.size
    assert (changed != drawn).any(axis=1).mean() > 0.7
    assert (changed[:, 2] == 0).all()


def test_mutate_leaves_a_space_without_choices_alone() -> None:
    rows = np.zeros((3, 1), dtype=np.int64)
    np.testing.assert_array_equal(c.mutate(Space([Knob("width:c", (4,))]), rows, np.random.default_rng(0)), rows)


def test_new_rows_are_distinct_and_unseen() -> None:
    rows = np.asarray([[2, 1, 0], [0, 0, 0], [2, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(c.new_rows(rows, rows[1:2]), [[1, 1, 0], [2, 1, 0]])
    assert len(c.new_rows(rows, rows)) == 0
    empty = Space([])
    assert len(c.new_rows(c.every(empty), c.encode(empty, []))) == 1
    assert len(c.new_rows(c.every(empty), c.encode(empty, [Config({})]))) == 0
