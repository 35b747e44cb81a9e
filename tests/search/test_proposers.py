from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from pliant.core import Config, Knob, Space
from pliant.search import Design, Evolution, Gp, Linas, Mcts, Nsga2, Proposer, Random, Ridge, Smbo, Tpe
from pliant.search.codes import encode
from pliant.search.pareto import Array, hypervolume

Values = Callable[[Mapping[str, int]], Sequence[float]]
PROPOSERS = [
    Random(),
    Design(),
    Ridge(initial=4, pool=256, draws=4, generations=3),
    Tpe(),
    Gp(initial=4),
    Evolution(population=4, tournament=2),
    Nsga2(population=4),
    Linas(population=4, inner=10, generations=5),
    Mcts(),
    Smbo(initial=4, trees=10, pool=64),
]
named = pytest.mark.parametrize("proposer", PROPOSERS, ids=lambda p: type(p).__name__)


def walk(proposer: Proposer, space: Space, values: Values, n: int, seed: int) -> tuple[list[Config], Array]:
    configs: list[Config] = []
    costs = np.zeros((0, 2))
    for _ in range(n):
        config = proposer.propose(space, configs, costs=costs, seed=seed)
        quality, latency = values(config)
        configs.append(config)
        costs = np.vstack([costs, [-quality, latency]])
    return configs, costs


@named
def test_proposer_covers_a_small_space_without_repetition(proposer: Proposer) -> None:
    space = Space([Knob("width:a", (1, 2, 3)), Knob("width:b", (1, 2)), Knob("depth:c", (False, True))])
    configs, _ = walk(proposer, space, lambda c: (float(c["width:a"]), float(sum(c.values()))), space.size, 0)
    assert set(configs) == set(space.configs())


@named
def test_proposer_is_a_pure_function_of_seed_and_history(proposer: Proposer, wide: tuple[Space, Values]) -> None:
    space, values = wide
    configs, costs = walk(proposer, space, values, 9, 3)
    again, _ = walk(proposer, space, values, 9, 3)
    assert again == configs
    assert proposer.propose(space, configs[:6], costs=costs[:6], seed=3) == configs[6]
    other, _ = walk(proposer, space, values, 9, 4)
    assert other != configs


@named
def test_proposer_handles_large_spaces_and_three_objectives(proposer: Proposer) -> None:
    space = Space([Knob(f"width:l{i}", (1, 2, 3)) for i in range(30)])
    configs: list[Config] = []
    costs = np.zeros((0, 3))
    for _ in range(7):
        config = proposer.propose(space, configs, costs=costs, seed=0)
        assert config not in configs
        configs.append(config)
        w = np.asarray(list(config.values()), dtype=float)
        costs = np.vstack([costs, [-np.log(w).sum(), (w[1:] * w[:-1]).sum(), w.sum()]])


def test_design_starts_with_ends_and_shares_then_spreads(wide: tuple[Space, Values]) -> None:
    space, values = wide

    def sizes_and_distances(proposer: Proposer) -> tuple[list[int], list[int]]:
        configs, _ = walk(proposer, space, values, 20, 0)
        codes = encode(space, configs)
        least = [int((codes[:i] != row).sum(axis=1).min()) for i, row in enumerate(codes) if i >= 5]
        return codes.sum(axis=1).tolist(), least

    assert walk(Design(), space, values, 3, 0)[0] == [space.smallest(), space.largest(), space.uniform(0.5)]
    sizes, distances = sizes_and_distances(Design())
    assert {size * 4 // 18 for size in sizes[5:]} == {0, 1, 2, 3}  # of 17 steps up in all, each quarter is visited
    assert np.mean(distances) > np.mean(sizes_and_distances(Random())[1])


def test_ridge_finds_the_front_of_a_known_space(wide: tuple[Space, Values]) -> None:
    space, values = wide
    everything = np.asarray([[-q, t] for q, t in map(values, space.configs())])
    corner = everything.max(axis=0)
    whole = hypervolume(everything, corner)
    shares = {
        proposer: [hypervolume(walk(proposer, space, values, 60, seed)[1], corner) / whole for seed in range(5)]
        for proposer in (Ridge(), Random())
    }
    assert space.size >= 2000
    assert min(shares[Ridge()]) >= 0.95
    assert np.median(shares[Ridge()]) > np.median(shares[Random()])
    assert all(ours > chance for ours, chance in zip(shares[Ridge()], shares[Random()], strict=True))


@pytest.mark.parametrize("wrong", [{"initial": -1}, {"pool": 3}, {"draws": 0}, {"generations": 0}])
def test_ridge_refuses_bad_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        Ridge(**wrong)
