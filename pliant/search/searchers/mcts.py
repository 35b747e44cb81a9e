"""Monte Carlo tree search over the knobs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pliant.core import Config, Facts, Space
from pliant.search import codes as c
from pliant.search.pareto import Array, ranks
from pliant.search.searchers.contract import candidates, rng_at


@dataclass(frozen=True)
class State:
    """A node of the tree: what was decided.

    Args:
        codes: choice numbers of the first knobs, -1 for those that are not there.
        span: between which choices of the next knob it still is, the end excluded; None before anything is known of it.
    """

    codes: tuple[int, ...] = ()
    span: tuple[int, int] | None = None


@dataclass
class _Node:
    visits: int = 0
    reward: float = 0.0
    done: set[State] = field(default_factory=set)  # children below which everything was measured


@dataclass(frozen=True)
class Mcts:
    """Monte Carlo tree search: knobs are decided one after the other, by upper confidence bounds as far as was tried.

    Negrinho & Gordon 2017, "DeepArchitect: Automatically Designing and Training Deep Architectures"
    <https://arxiv.org/abs/1704.08792>, section 5: UCT (Kocsis & Szepesvari 2006) down to a child that was never tried,
    random choices from there, and ordered knobs decided by halves, so that neighbours share what is learned. The
    reward of a config is the share of the others that it does not lose to in non-domination rank.

    Args:
        explore: weight of the confidence bound.

    Raises:
        ValueError: a negative weight.
    """

    facts: ClassVar[Facts] = Facts(
        title="DeepArchitect: Automatically Designing and Training Deep Architectures",
        year=2017,
        room="search",
        rows=("160",),
        deviations=(
            "rewards are ranks, so that they need no scale and hold for several objectives",
            "subtrees of which everything was measured are left out, so that no config comes twice",
        ),
    )

    explore: float = 0.33

    def __post_init__(self) -> None:
        if self.explore < 0:
            raise ValueError(f"explore must not be negative, got {self.explore}")

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = rng_at(seed, len(configs)), c.encode(space, configs)
        tree = self._tree(space, seen, costs)
        state = _settled(space, State())
        while (node := tree.get(state)) is not None and (children := _children(space, state)):
            open_ones = [child for child in children if child not in node.done]
            fresh = [child for child in open_ones if child not in tree]
            if not open_ones:  # everything was measured: the caller promised that this is not the root
                break
            if fresh:
                state = fresh[int(rng.integers(len(fresh)))]
            else:
                bounds = [self._bound(tree[child], node) for child in open_ones]
                state = open_ones[int(np.argmax(bounds))]
        for _ in range(64):  # from here on at random; nothing below was tried, unless the tree is used up
            leaf = state
            while children := _children(space, leaf):
                leaf = children[int(rng.integers(len(children)))]
            if not (seen == np.asarray(leaf.codes)).all(axis=1).any():
                return c.decode(space, np.asarray(leaf.codes))
        rows = candidates(space, seen, 64, rng)
        return c.decode(space, rows[rng.integers(len(rows))])

    def _bound(self, child: _Node, parent: _Node) -> float:
        return child.reward / child.visits + self.explore * math.sqrt(2 * math.log(parent.visits) / child.visits)

    def _tree(self, space: Space, seen: c.Codes, costs: Array) -> dict[State, _Node]:
        """The tree that the history makes."""
        tree: dict[State, _Node] = {_settled(space, State()): _Node()}
        rank = ranks(costs)
        for number, row in enumerate(seen.tolist()):
            path = _path(space, row)
            for state in path:
                node = tree.setdefault(state, _Node())
                node.visits += 1
                node.reward += float((rank >= rank[number]).mean())
            for parent, child in zip(path[-2::-1], path[:0:-1], strict=True):
                children = _children(space, child)
                if len(tree[child].done) < len(children):
                    break
                tree[parent].done.add(child)
        return tree


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


def _children(space: Space, state: State) -> list[State]:
    """The next decisions: halves of an ordered knob, single choices of others; none for a whole config."""
    number = len(state.codes)
    if number == len(space):
        return []
    low, high = state.span or (0, len(space.knobs[number].choices))
    if space.knobs[number].ordered:
        middle = (low + high + 1) // 2
        spans = [(low, middle), (middle, high)]
    else:
        spans = [(i, i + 1) for i in range(low, high)]
    return [_settled(space, State(state.codes, span)) for span in spans]


def _path(space: Space, row: Sequence[int]) -> list[State]:
    """The states from the root to a config."""
    path = [_settled(space, State())]
    while children := _children(space, path[-1]):
        path.append(next(child for child in children if _holds(child, row)))
    return path


def _holds(state: State, row: Sequence[int]) -> bool:
    number = len(state.codes)
    if tuple(row[:number]) != state.codes:
        return False
    return state.span is None or state.span[0] <= row[number] < state.span[1]
