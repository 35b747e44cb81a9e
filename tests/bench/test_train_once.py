"""What is made of the qualities of families and separate networks."""

import pytest

from bench import _families as families
from bench import train_once
from bench._families import Task

IMAGES, TEXT = Task("fashion", (1, 1, 1), 16), Task("shakespeare-quarter", (3,), 64, net="gpt")
SIZES = range(len(train_once.SHARES))


def test_gaps_are_paired_by_seed() -> None:
    """Seeds differ by much, gaps by little: the interval is that of the gaps."""
    theirs = {(s, n): 0.8 + 0.05 * s - 0.01 * n for s in train_once.SEEDS for n in SIZES}
    ours = {at: value - 0.002 - 0.001 * (at[1] == 5) + 0.0001 * at[0] for at, value in theirs.items()}
    found = train_once.compared(IMAGES, ours, theirs)
    assert found["mean_gap"] == pytest.approx(-0.2 - 0.1 / 6 + 0.01)
    assert found["mean_gap_high"] - found["mean_gap_low"] == pytest.approx(2 * 4.303 * 0.01 / 3**0.5, rel=1e-3)
    assert found["worst_gap"] == pytest.approx(-0.29)
    assert found["worst_gap_of_a_seed"] == pytest.approx(-0.3)


def test_nats_count_as_they_are() -> None:
    theirs = {(s, n): -1.5 for s in train_once.SEEDS for n in SIZES}
    found = train_once.compared(TEXT, dict.fromkeys(theirs, -1.49), theirs)
    assert found["mean_gap"] == pytest.approx(0.01)


def test_sizes_in_between_take_the_nearer_rate() -> None:
    rates = {"largest": 1.0, "smallest": 2.0}
    assert [train_once.rate_of(rates, size) for size in SIZES] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def test_every_contest_has_a_family_of_a_hundred_and_two_have_the_sandwich() -> None:
    assert sum("sandwich" in contest.family_epochs for contest in train_once.CONTESTS.values()) >= 2
    for contest in train_once.CONTESTS.values():
        assert train_once.DEFAULT in contest.family_epochs
        assert families.family(contest.task).space.size >= 100
