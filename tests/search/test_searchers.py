"""What all searchers have in common, on spaces with names, ranges, conditions and sub-spaces."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pliant.core import Config, Knob, PliantError, Space, either, optional, repeated
from pliant.search import (
    AskTell,
    Design,
    Evolution,
    Gp,
    Linas,
    Mcts,
    Nsga2,
    Proposer,
    Random,
    Ridge,
    Smbo,
    Tpe,
    searchers,
)
from pliant.search import codes as c
from pliant.search.pareto import crowding, hypervolume, ranks

CELL = Space([Knob("op", ("conv", "pool", "skip")), Knob("kernel", (3, 5, 7), when={"op": "conv"})])
NET = Space(
    [
        Knob.integers("width", (8, 64), step=8),
        repeated("cell", CELL, n=(1, 3)),
        optional("squeeze", Space([Knob("ratio", (4, 8))])),
        either("head", {"linear": Space([]), "mlp": Space([Knob.floats("drop", (0, 0.5), points=6)])}),
    ]
)
SMALL = Space([CELL, optional("more", Space([Knob("n", (1, 2))]))])

PROPOSERS: list[Proposer] = [
    Random(),
    Design(),
    Ridge(initial=6, pool=256, draws=4, generations=3),
    Tpe(),
    Gp(initial=12),
    Evolution(population=6, tournament=3),
    Nsga2(population=6),
    Linas(population=6, inner=12, generations=5),
    Mcts(),
    Smbo(initial=6, trees=10, pool=64),
]
named = pytest.mark.parametrize("proposer", PROPOSERS, ids=lambda p: type(p).__name__)


def costs_of(config: Mapping[str, Any]) -> list[float]:
    """Known for every config: more and larger convolutions are better and dearer, a good head is cheap."""
    work = gain = 0.0
    for i in range(int(config["cell"])):
        if config[f"cell.{i}.op"] == "conv":
            work += config[f"cell.{i}.kernel"] * config["width"] / 64
            gain += 1 + 0.1 * config[f"cell.{i}.kernel"]
        elif config[f"cell.{i}.op"] == "pool":
            work, gain = work + 0.2, gain + 0.3
    gain *= (config["width"] / 64) ** 0.3
    gain += 0.2 * config["squeeze"]
    if config["head"] == "mlp":
        gain, work = gain + 0.5 - abs(config["head.mlp.drop"] - 0.2), work + 0.1
    return [-gain, work]


def walk(proposer: Proposer, n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    loop = AskTell(proposer, NET, objectives=2, seed=seed)
    found = []
    for _ in range(n):
        config = loop.ask()
        found.append(costs_of(config))
        loop.tell(config, found[-1])
    return np.asarray(found)


@named
def test_searcher_walks_a_space_with_conditions(proposer: Proposer) -> None:
    loop = AskTell(proposer, NET, objectives=2)
    seen = set()
    for _ in range(14):
        config = loop.ask()
        assert NET.validate(config) == config
        seen.add(config)
        loop.tell(config, costs_of(config))
    assert len(seen) == 14


@named
def test_searcher_uses_up_a_small_space_with_conditions(proposer: Proposer) -> None:
    loop = AskTell(proposer, SMALL, objectives=1)
    for number in range(SMALL.size):
        loop.tell(loop.ask(), [float(number % 4)])
    assert set(map(Config, [row[0] for row in loop.save()["asked"]])) == set(SMALL.configs())
    with pytest.raises(PliantError, match="all 15 configs of the space were asked for"):
        loop.ask()


@named
def test_searcher_goes_on_from_what_was_saved(proposer: Proposer) -> None:
    whole, half = (AskTell(proposer, NET, objectives=2, seed=3) for _ in range(2))
    for loop, n in ((whole, 13), (half, 7)):
        for number in range(n):
            config = loop.ask()
            loop.tell(config, None if number == 2 else costs_of(config))
    again = AskTell.resume(json.loads(json.dumps(half.save())), proposer, space=NET)
    for _ in range(6):
        config = again.ask()
        again.tell(config, costs_of(config))
    assert again.save() == whole.save()


@pytest.mark.parametrize("proposer", [Nsga2(population=6), Ridge(initial=6, pool=256, draws=4), Mcts()])
def test_with_a_lag_it_does_not_matter_which_worker_is_first(proposer: Proposer) -> None:
    """Two workers: the second result is told before the first, or after it."""

    def asked(first: int) -> list[Config]:
        loop = AskTell(proposer, NET, objectives=2, lag=1)
        configs = [loop.ask(), loop.ask()]
        for number in range(10):
            for config in configs[-2:] if first == 0 else configs[:-3:-1]:
                if number % 2 == 0:
                    loop.tell(config, costs_of(config))
            configs.append(loop.ask())
        return configs

    ahead = AskTell(proposer, NET, objectives=2, lag=1)
    one = ahead.ask()
    ahead.tell(one, [0.0, 0.0])
    other = AskTell(proposer, NET, objectives=2, lag=1)
    assert other.ask() == one
    assert ahead.ask() == other.ask()  # the second does not wait for the first
    assert asked(0) == asked(1)


def test_informed_searchers_beat_chance() -> None:
    """With two objectives by hypervolume, with one by the best found; medians of five seeds."""
    corner, seeds = np.asarray([1.0, 25.0]), range(5)
    chance = np.median([hypervolume(walk(Random(), 60, seed), corner) for seed in seeds])
    for proposer in (Nsga2(population=10), Linas(generations=10)):
        assert np.median([hypervolume(walk(proposer, 60, seed), corner) for seed in seeds]) > chance, proposer

    def best(proposer: Proposer, seed: int) -> float:
        loop = AskTell(proposer, NET, objectives=1, seed=seed)
        found = []
        for _ in range(60):
            config = loop.ask()
            gain, work = costs_of(config)
            found.append(gain + 0.05 * work)
            loop.tell(config, found[-1:])
        return min(found)

    chance = np.median([best(Random(), seed) for seed in seeds])
    for other in (Evolution(population=10, tournament=4), Linas(generations=10)):
        assert np.median([best(other, seed) for seed in seeds]) < chance, other
    assert np.median([best(Smbo(trees=10, pool=64), seed) for seed in seeds[:3]]) < chance


def test_failures_count_as_the_worst_and_what_is_not_known_as_average() -> None:
    loop = AskTell(Random(), NET, objectives=2)
    configs = [loop.ask() for _ in range(4)]
    loop.tell(configs[0], [1.0, 4.0])
    loop.tell(configs[2], [3.0, 2.0])
    loop.tell(configs[1], None)
    np.testing.assert_array_equal(loop._known(), [[1, 4], [3, 4], [3, 2], [2, 3]])


def test_wrong_answers_are_refused() -> None:
    loop = AskTell(Random(), NET, objectives=2)
    config = loop.ask()
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="costs are 2 finite numbers"):
            loop.tell(config, wrong)
    loop.tell(config, [1.0, 2.0])
    with pytest.raises(ValueError, match="was told already"):
        loop.tell(config, [1.0, 2.0])
    with pytest.raises(ValueError, match="knob 'width' takes"):
        loop.tell({"width": 9}, [1.0, 2.0])
    with pytest.raises(ValueError, match="at least 1 objective"):
        AskTell(Random(), NET, objectives=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Evolution(population=2, tournament=3), "1 <= tournament <= population, got 3 and 2"),
        (lambda: Nsga2(population=1), "population must be at least 2, got 1"),
        (lambda: Nsga2(mutation=1.5), "are shares"),
        (lambda: Linas(inner=1), "inner must be at least 2"),
        (lambda: Mcts(explore=-1), "explore must be at least 0, got -1"),
        (lambda: Mcts(temperature=0), "temperature must be above 0, got 0"),
        (lambda: Mcts(reference=0), "reference must be at least 1, got 0"),
        (lambda: Smbo(pool=3), "pool must be at least 16"),
        (lambda: Smbo(chance=2), "chance must be in"),
        (lambda: Gp(initial=0), "initial must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_every_searcher_has_facts_and_a_name() -> None:
    assert {type(proposer).__name__ for proposer in PROPOSERS} == set(searchers.__all__)
    for name in searchers.__all__:
        assert getattr(searchers, name).facts.room == "search"


def test_ranks_and_crowding_by_hand() -> None:
    costs = np.asarray([[1, 4], [2, 2], [4, 1], [3, 3], [4, 4], [2, 2]], dtype=float)
    rank = ranks(costs)
    np.testing.assert_array_equal(rank, [0, 0, 0, 1, 2, 0])
    apart = crowding(costs, rank)
    assert np.isinf(apart[[0, 2, 3, 4]]).all()
    assert sorted(apart[[1, 5]]) == pytest.approx([2 / 3, 4 / 3])


def test_rows_of_a_space_with_conditions_are_valid() -> None:
    rng = np.random.default_rng(0)
    drawn = c.draw(NET, 200, rng)
    moved = (drawn, c.mutate(NET, drawn, rng), c.cross(NET, drawn, 200, rng), c.uniform(NET, 200, rng))
    for rows in moved:
        for row in rows:
            config = c.decode(NET, row)
            assert NET.validate(config) == config
        np.testing.assert_array_equal(c.encode(NET, [c.decode(NET, row) for row in rows]), rows)
    every = c.every(SMALL)
    assert [c.decode(SMALL, row) for row in every] == list(SMALL.configs())
    assert (c.levels(SMALL, every)[:, 0] == 0).all()


def test_default_stays_near_the_best_where_it_expects_no_more() -> None:
    """A conditional space of products, where a logarithmic predictor soon says that nothing better is left."""
    plain = Space([Knob("kernel", (1, 3)), Knob("pool", ("average", "max"))])
    cell = Space([either("kind", {"residual": Space([]), "separable": Space([]), "plain": plain})])
    space = Space([Knob("stem", (8, 16)), repeated("cell", cell, n=(1, 2)), Knob("head", (1, 2, 3))])
    kinds = {"residual": 0.5, "separable": 0.9, "plain": 0.6}

    def cost(config: Mapping[str, Any]) -> float:
        factors = [kinds[config[f"cell.{i}.kind"]] for i in range(config["cell"])]
        factors += [1.4 for name, value in config.items() if name.endswith("kernel") and value == 1]
        factors += [1.2 if config["stem"] == 8 else 1.0, {1: 1.3, 2: 1.0, 3: 0.9}[config["head"]]]
        luck = np.random.default_rng(list(json.dumps(dict(config)).encode())).standard_normal()
        return 0.12 + 0.3 * float(np.prod(factors)) + 0.01 * float(luck)

    good, late = np.quantile([cost(config) for config in space.configs()], 0.3), []
    for seed in range(3):
        loop, found = AskTell(Ridge(), space, objectives=1, seed=seed), []
        for _ in range(26):
            config = loop.ask()
            found.append(cost(config))
            loop.tell(config, found[-1:])
        late.append(np.median(found[-10:]))
    assert max(late) < good
