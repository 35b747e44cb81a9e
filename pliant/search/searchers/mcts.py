"""Monte Carlo tree search over the knobs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pliant.core import Config, Facts, Knob, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array, ranks
from pliant.search.searchers.contract import rng_at

Span = tuple[int, int]
"""Choices of a knob: the first, and the one after the last."""
Rows = NDArray[np.bool_]
"""Which of the configs that were measured: bool [configs]."""
POOL = 64


@dataclass(frozen=True)
class State:
    """A node of the tree: what was decided.

    Args:
        codes: choice numbers of the first knobs, -1 for those that are not there.
        span: between which choices of the next knob it still is; None before anything is known of it.
    """

    codes: tuple[int, ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class _Child:
    state: State
    rows: Rows  # measured below it
    alike: Rows  # measured with the same choice below the reference, whatever was decided in between


@dataclass(frozen=True)
class Mcts:
    """Monte Carlo tree search: knobs are decided one after the other, by what was measured below each choice.

    The tree is that of Negrinho & Gordon 2017, "DeepArchitect: Automatically Designing and Training Deep Architectures"
    <https://arxiv.org/abs/1704.08792>, section 5: a path from the root decides one knob after the other, a
    knob is only there if what it hangs on is, and ordered knobs are decided by halves ("tree restructuring"), so that
    neighbours share what is learned. A child is chosen by the upper confidence bound of UCT (Kocsis & Szepesvari 2006,
    "Bandit based Monte-Carlo Planning" <https://doi.org/10.1007/11871842_29>),

        value + explore * sqrt(2 log(visits of the parent) / visits of the child).

    A search of networks has tens of evaluations where a game has thousands, so that most nodes are never visited twice.
    Two things that are known from games use each evaluation more than once:

    - `bias`: the value of a choice is mixed with that of the same choice in all that was measured below the closest
      ancestor with `reference` visits (Cazenave 2015, "Generalized Rapid Action Value Estimation", IJCAI): with `n`
      own visits and `a` visits to the choice there, the latter weighs `a / (a + n + bias * a * n)`.
    - `temperature`: what is left open at the end of the path is drawn by how the choices did anywhere, `exp(gain /
      temperature)` for each (Finnsson & Bjornsson 2008, "Simulation-Based Approach to General Game Playing", AAAI),
      where `gain` is a choice's mean reward over that of its knob; few visits are shrunk towards the half of the knob
      that the choice lies in.

    The reward of a config is the share of the others that it does not lose to in non-domination rank: between 0 and 1
    whatever the objectives' scales, evenly so for one objective. Draws at the end of a path are spread over distinct
    configs below it, so that a branch with many configs is not drawn as seldom as one with a single config.

    `Mcts(explore=0.33, bias=math.inf, temperature=math.inf)` is DeepArchitect's own, with those rewards.

    Args:
        explore: weight of the confidence bound.
        bias: how soon a node's own visits outweigh those of its like; infinite for own visits only.
        reference: visits of the ancestor whose configs count as alike.
        temperature: infinite to draw evenly.

    Raises:
        ValueError: a negative weight or bias, a reference below 1, or a temperature that is not above 0.
    """

    facts: ClassVar[Facts] = Facts(
        title="DeepArchitect: Automatically Designing and Training Deep Architectures",
        year=2017,
        room="search",
        rows=("160",),
        deviations=(
            "choices share what was measured elsewhere in the tree, and rollouts prefer those that did well",
            "rewards are ranks, so that they need no scale and hold for several objectives",
            "subtrees of which everything was measured are left out, so that no config comes twice",
        ),
    )

    explore: float = 0.5
    bias: float = 0.01
    reference: int = 8
    temperature: float = 0.15

    def __post_init__(self) -> None:
        at_least(self, explore=0, bias=0, reference=1)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        reward = _rewards(costs)
        state, rows = _settled(space, State()), np.ones(len(seen), dtype=bool)
        alike = rows
        while rows.any() and len(state.codes) < len(space):
            visits = int(rows.sum())
            alike = rows if visits >= self.reference else alike
            children = [child for child in _children(space, state, seen, rows, alike) if not _used_up(space, child)]
            bounds = np.asarray([self._bound(child, reward, visits) for child in children])
            best = children[int(rng.choice(np.flatnonzero(bounds == bounds.max())))]
            state, rows = best.state, best.rows
        left = _left_below(space, state, seen, rng)
        if math.isinf(self.temperature) or not len(seen):
            return c.decode(space, left[rng.integers(len(left))])
        gain = np.zeros(len(left))
        for number in range(len(state.codes), len(space)):  # a sum, so a product of what each knob alone is drawn with
            gain += _gains(space.knobs[number], seen[:, number], reward)[left[:, number]]
        weights = np.exp((gain - gain.max()) / self.temperature)
        return c.decode(space, left[rng.choice(len(left), p=weights / weights.sum())])

    def _bound(self, child: _Child, reward: Array, visits: int) -> float:
        """The upper confidence bound; infinite for what was never tried, here or (where that counts) elsewhere."""
        own = int(child.rows.sum())
        like = 0 if math.isinf(self.bias) else int(child.alike.sum())
        if own + like == 0:
            return math.inf
        share = like / (like + own + self.bias * like * own) if like else 0.0
        value = share * float(reward[child.alike].mean()) if like else 0.0
        if own:
            value += (1 - share) * float(reward[child.rows].mean())
        return value + self.explore * math.sqrt(2 * math.log(visits + 1) / max(own, 1))


def _rewards(costs: Array) -> Array:
    """The share of configs that each does not lose to: float64 [configs], between 0 and 1."""
    rank = ranks(costs)
    return (rank[None] >= rank[:, None]).mean(axis=1) if len(rank) else np.zeros(0)


# -- the tree ---------------------------------------------------------------------------------------------------------


def _settled(space: Space, state: State) -> State:
    """The state after everything that needs no decision: knobs that are not there or have one choice."""
    codes = list(state.codes)
    span = state.span
    if span is not None and span[1] - span[0] == 1:
        codes.append(span[0])
        span = None
    while span is None and len(codes) < len(space):
        own, count = space.conditions[len(codes)], len(space.knobs[len(codes)].choices)
        there = all(codes[parent] in allowed for parent, allowed in own)
        if there and count > 1:
            break
        codes.append(0 if there else -1)
    return State(tuple(codes), span)


def _parts(knob: Knob, span: Span) -> list[Span]:
    """The next decisions about a knob: halves of an ordered one, single choices of others."""
    low, high = span
    if knob.ordered:
        middle = (low + high + 1) // 2
        return [(low, middle), (middle, high)]
    return [(i, i + 1) for i in range(low, high)]


def _children(space: Space, state: State, seen: c.Codes, rows: Rows, alike: Rows) -> list[_Child]:
    """What may be decided next, and which of the measured configs each keeps."""
    number = len(state.codes)
    knob, chosen = space.knobs[number], seen[:, number]
    found = []
    for span in _parts(knob, state.span or (0, len(knob.choices))):
        inside = (chosen >= span[0]) & (chosen < span[1])
        found.append(_Child(_settled(space, State(state.codes, span)), rows & inside, alike & inside))
    return found


def _used_up(space: Space, child: _Child) -> bool:
    """Whether everything below was measured."""
    visits = int(child.rows.sum())
    return visits > 0 and _all_below(space, child.state, visits) is not None


def _all_below(space: Space, state: State, most: int) -> c.Codes | None:
    """All rows below a state; None where there are more than `most`."""
    rows, number = np.full((1, len(space)), -1, dtype=np.int64), len(state.codes)
    rows[0, :number] = state.codes
    if state.span is not None:
        rows = np.repeat(rows, state.span[1] - state.span[0], axis=0)
        rows[:, number] = np.arange(*state.span)
        number += 1
    while number < len(space) and len(rows) <= most:
        rows, number = c.extended(space, rows, number), number + 1
    return rows if len(rows) <= most else None


def _left_below(space: Space, state: State, seen: c.Codes, rng: np.random.Generator) -> c.Codes:
    """Rows below a state that were not measured: all where there are few, else some, spread over sizes."""
    every = _all_below(space, state, max(POOL, 2 * len(seen)))
    if every is not None:
        return c.new_rows(every, seen)
    number = len(state.codes)
    while True:  # at least half of what is below is new
        rows = c.spread(space, POOL, rng)
        rows[:, :number] = state.codes
        if state.span is not None:
            rows[:, number] = rng.integers(*state.span, len(rows))
        rows = c.new_rows(c.settle(space, rows, rng), seen)
        if len(rows):
            return rows


def _gains(knob: Knob, chosen: NDArray[np.int64], reward: Array) -> Array:
    """By how much each choice of a knob did better than the knob on average: float64 [choices + 1], the last one 0.

    The last one is for configs without the knob (number -1). Each half is shrunk towards the whole by one visit.
    """
    gains = np.zeros(len(knob.choices) + 1)
    there = chosen >= 0
    if not there.any():
        return gains
    mean = float(reward[there].mean())
    open_ones = [((0, len(knob.choices)), mean)]
    while open_ones:
        span, value = open_ones.pop()
        gains[span[0] : span[1]] = value - mean
        if span[1] - span[0] > 1:
            for part in _parts(knob, span):
                inside = (chosen >= part[0]) & (chosen < part[1])
                if inside.any():
                    open_ones.append((part, float((reward[inside].sum() + value) / (inside.sum() + 1))))
                else:
                    gains[part[0] : part[1]] = value - mean
    return gains
