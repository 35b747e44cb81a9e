"""Monte Carlo tree search: its tree, and whether it is worth it."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import pytest

from pliant.core import Config, Knob, Space, either, optional, repeated
from pliant.search import AskTell, Mcts, Proposer, Random
from pliant.search import codes as c
from pliant.search.searchers.mcts import State, _all_below, _children, _gains, _left_below, _rewards, _settled

Cost = Callable[[Mapping[str, Any]], float]
DEEP_ARCHITECT = Mcts(explore=0.33, bias=math.inf, temperature=math.inf)

TREE = Space([Knob("n", (1, 2, 3, 4)), Knob("op", ("a", "b", "c")), Knob("k", (1, 2), when={"op": "a"})])


def path(space: Space, row: Sequence[int]) -> list[State]:
    """The states from the root to a config."""
    seen, one = np.asarray([row]), np.ones(1, dtype=bool)
    found = [_settled(space, State())]
    while len(found[-1].codes) < len(space):
        found += [child.state for child in _children(space, found[-1], seen, one, one) if child.rows.any()]
    return found


def test_the_tree_halves_ordered_knobs_and_skips_what_is_not_there() -> None:
    found = [(state.codes, state.span) for state in path(TREE, [2, 1, -1])]
    assert found == [((), None), ((), (2, 4)), ((2,), None), ((2, 1, -1), None)]


def test_what_is_below_a_state() -> None:
    rows = _all_below(TREE, State((), (2, 4)), 100)
    assert rows is not None
    configs = [c.decode(TREE, row) for row in rows]
    assert configs == [config for config in TREE.configs() if config["n"] >= 3]
    assert _all_below(TREE, State((), (2, 4)), len(configs)) is not None
    assert _all_below(TREE, State((), (2, 4)), len(configs) - 1) is None
    large = Space([Knob.integers(name, (0, 31)) for name in "abcd"])
    left = _left_below(large, State((7,), (8, 16)), c.encode(large, []), np.random.default_rng(0))
    assert (left[:, 0] == 7).all()
    assert set(left[:, 1]) <= set(range(8, 16))
    assert len(left) > 32


def test_rewards_and_gains_by_hand() -> None:
    np.testing.assert_allclose(_rewards(np.asarray([[5.0], [1.0], [3.0]])), [1 / 3, 1, 2 / 3])
    knob = Knob("n", (1, 2, 3, 4))
    gains = _gains(knob, np.asarray([0, 0, 3, -1]), np.asarray([1.0, 0.8, 0.0, 0.3]))
    middle = (1.8 + 0.6) / 3  # of the lower half, shrunk by one visit towards the mean of 0.6
    np.testing.assert_allclose(gains, [(1.8 + middle) / 3 - 0.6, middle - 0.6, -0.3, (0.0 + 0.3) / 2 - 0.6, 0])
    # below the upper half nothing but 4 was measured, so 3 is as good as the half
    assert _gains(knob, np.asarray([-1, -1]), np.asarray([1.0, 0.0])).tolist() == [0] * 5


def test_it_goes_where_rewards_are() -> None:
    space = Space([Knob.integers(name, (0, 31)) for name in "abc"])
    near = {}
    for proposer in (Mcts(), DEEP_ARCHITECT, Random()):
        loop = AskTell(proposer, space, objectives=1)
        for _ in range(100):
            config = loop.ask()
            loop.tell(config, [float(abs(config["a"] - 5) + abs(config["b"] - 27) + abs(config["c"] - 12))])
        asked = [row[0]["a"] for row in loop.save()["asked"]]
        near[proposer] = sum(value < 16 for value in asked[50:])
    assert near[Mcts()] > 40
    assert near[DEEP_ARCHITECT] > 35 > near[Random()]


# -- against chance ---------------------------------------------------------------------------------------------------


def ranges() -> tuple[Space, Cost]:
    """Ordered knobs only, each with one best value."""
    space = Space([Knob.integers(name, (0, 31)) for name in "abc"])
    return space, lambda x: abs(x["a"] - 5) + abs(x["b"] - 27) + abs(x["c"] - 12)


def stack() -> tuple[Space, Cost]:
    """A repeated cell with a choice of operator, an optional part and a head: cost against quality."""
    cell = Space([Knob("op", ("conv", "pool", "skip")), Knob("kernel", (3, 5, 7), when={"op": "conv"})])
    head = {"linear": Space([]), "mlp": Space([Knob.floats("drop", (0, 0.5), points=6)])}
    ratio = optional("squeeze", Space([Knob("ratio", (4, 8))]))
    width = Knob.integers("width", (8, 64), step=8)

    def cost(x: Mapping[str, Any]) -> float:
        work = gain = 0.0
        for i in range(x["cell"]):
            if x[f"cell.{i}.op"] == "conv":
                work += x[f"cell.{i}.kernel"] * x["width"] / 64
                gain += 1 + 0.1 * x[f"cell.{i}.kernel"]
            elif x[f"cell.{i}.op"] == "pool":
                work, gain = work + 0.2, gain + 0.3
        gain = gain * (x["width"] / 64) ** 0.3 + 0.2 * x["squeeze"]
        if x["head"] == "mlp":
            gain, work = gain + 0.5 - abs(x["head.mlp.drop"] - 0.2), work + 0.1
        return float(0.4 * work - gain)

    return Space([width, repeated("cell", cell, n=(1, 3)), ratio, either("head", head)]), cost


def modules() -> tuple[Space, Cost]:
    """252 networks of a stem, one or two cells and a head, with interactions and noise of its own for each."""
    plain = Space([Knob("kernel", (1, 3)), Knob("pool", ("average", "max"))])
    cell = Space([either("kind", {"residual": Space([]), "separable": Space([]), "plain": plain})])

    def cost(x: Mapping[str, Any]) -> float:
        quality: float = 0.012 * (x["stem"] == 16) + (0.0, 0.02, 0.028)[x["head"] - 1]
        quality -= 0.015 * (x["cell"] == 2 and x["head"] == 3)
        for i in range(x["cell"]):
            name = f"cell.{i}.kind"
            if x[name] == "plain":
                quality += 0.005 * (x[f"{name}.plain.pool"] == "max") - (
                    0.01 if x[f"{name}.plain.kernel"] == 1 else -0.02
                )
            else:
                quality += 0.04 if x[name] == "residual" else 0.03
        return -quality - 0.004 * float(np.random.default_rng(list(Config(x).to_json().encode())).standard_normal())

    return Space([Knob("stem", (8, 16)), repeated("cell", cell, n=(1, 2)), Knob("head", (1, 2, 3))]), cost


def learners() -> tuple[Space, Cost]:
    """Which learner, and its own numbers, as a choice of algorithm and hyperparameters has it."""
    layer = Space([Knob.integers("units", (16, 128), step=16), Knob("act", ("relu", "tanh", "none"))])
    gamma = Knob.floats("gamma", (1e-4, 10), points=16, log=True, when={"kernel": "rbf"})
    options = {
        "svm": Space(
            [Knob.floats("c", (1e-3, 1e3), points=25, log=True), Knob("kernel", ("lin", "rbf", "poly")), gamma]
        ),
        "forest": Space([Knob.integers("trees", (10, 200), step=10), Knob.integers("depth", (2, 20))]),
        "net": Space([Knob.floats("lr", (1e-4, 1e-1), points=16, log=True), repeated("layer", layer, n=(1, 3))]),
    }

    def quality(x: Mapping[str, Any], own: Mapping[str, Any]) -> float:
        if x["of"] == "svm":
            found = {"lin": 0.0, "poly": -0.05}.get(own["kernel"], 0.06) - 0.02 * abs(math.log10(own["c"]) - 1)
            return 0.8 + found - (0.05 * abs(math.log10(own["gamma"]) + 1.5) if own["kernel"] == "rbf" else 0.0)
        if x["of"] == "forest":
            return float(0.85 + 0.02 * math.log10(own["trees"] / 200) - 0.002 * abs(own["depth"] - 14))
        found = 0.86 - 0.05 * abs(math.log10(own["lr"]) + 2.5)
        for i in range(own["layer"]):
            act = {"relu": 0.02, "tanh": 0.0, "none": -0.03}[own[f"layer.{i}.act"]]
            found += 0.012 * math.log2(own[f"layer.{i}.units"] / 64) + act
        return found

    def cost(x: Mapping[str, Any]) -> float:
        prefix = f"of.{x['of']}."
        return -quality(x, {name.removeprefix(prefix): value for name, value in x.items() if name.startswith(prefix)})

    return Space([either("of", options)]), cost


def found_best(proposer: Proposer, space: Space, cost: Cost, seed: int, n: int = 40) -> float:
    loop = AskTell(proposer, space, objectives=1, seed=seed)
    found = []
    for _ in range(n):
        config = loop.ask()
        found.append(float(cost(config)))
        loop.tell(config, found[-1:])
    return min(found)


def excess(proposer: Proposer, space: Space, cost: Cost) -> list[float]:
    """By how many standard deviations of the space the best of 40 misses the best there is, for 20 seeds."""
    rows = c.every(space) if space.size < 1000 else c.uniform(space, 1000, np.random.default_rng(0))
    every = [cost(c.decode(space, row)) for row in rows]
    return [(found_best(proposer, space, cost, seed) - min(every)) / float(np.std(every)) for seed in range(20)]


@pytest.mark.parametrize("made", [ranges, stack, modules, learners], ids=lambda made: made.__name__)
def test_it_beats_chance_where_there_is_structure(made: Callable[[], tuple[Space, Cost]]) -> None:
    ours, chance = excess(Mcts(), *made()), excess(Random(), *made())
    assert mean(ours) + 0.1 < mean(chance)
    won = sum(a < b for a, b in zip(ours, chance, strict=True))
    lost = sum(a > b for a, b in zip(ours, chance, strict=True))
    assert won > 2 * lost, (won, lost)


def test_without_structure_it_is_as_good_as_chance() -> None:
    space, _ = stack()

    def cost(x: Mapping[str, Any]) -> float:
        return float(np.random.default_rng(list(Config(x).to_json().encode())).random())

    assert mean(found_best(Mcts(), space, cost, seed) for seed in range(20)) < 2 / 41  # 1 / 41 is to be expected
