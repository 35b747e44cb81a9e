"""Dominance and hypervolume on plain arrays, every column to be minimised."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nondominated(costs: Array) -> NDArray[np.bool_]:
    """Which rows no other row dominates.

    A row dominates another when it is no larger in every column and smaller in at least one; equal rows do not
    dominate each other, so that ties are all kept.

    Args:
        costs: [points, objectives], smaller is better.

    Returns:
        bool [points].
    """
    keep = np.ones(len(costs), dtype=bool)
    for i, row in enumerate(costs):
        if keep[i]:  # what a dominated row dominates, its dominator dominates too
            keep &= ~((row <= costs).all(axis=1) & (row < costs).any(axis=1))
    return keep


def ranks(costs: Array) -> NDArray[np.int64]:
    """Non-domination ranks: 0 for the front, 1 for the front of the rest, and so on (Deb et al. 2002, section III.A).

    Args:
        costs: [points, objectives], smaller is better.

    Returns:
        int64 [points].
    """
    no_larger, smaller = costs[:, None] <= costs[None], costs[:, None] < costs[None]
    less = np.asarray(no_larger.all(axis=2) & smaller.any(axis=2))
    above = less.sum(axis=0)
    found = np.full(len(costs), -1, dtype=np.int64)
    rank = 0
    while (found < 0).any():
        front = (above == 0) & (found < 0)
        found[front] = rank
        above = above - less[front].sum(axis=0)
        rank += 1
    return found


def crowding(costs: Array, ranks: NDArray[np.int64]) -> Array:
    """How far the neighbours of the same rank lie apart; infinite at the ends (Deb et al. 2002, section III.B).

    Args:
        costs: [points, objectives].
        ranks: [points].

    Returns:
        float64 [points].
    """
    found = np.zeros(len(costs))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        for column in costs[members].T:
            order = members[np.argsort(column, kind="stable")]
            values = np.sort(column, kind="stable")
            found[order[[0, -1]]] = np.inf
            if len(members) > 2 and values[-1] > values[0]:
                found[order[1:-1]] += (values[2:] - values[:-2]) / (values[-1] - values[0])
    return found


def hypervolume(costs: Array, reference: Array) -> float:
    """The exact volume that the points dominate, bounded by `reference`.

    Two objectives: a sweep. More: slices along the last objective, each a hypervolume of one dimension less
    (While, Hingston, Barone & Huband 2006, "A faster algorithm for calculating hypervolume", HSO).

    Args:
        costs: [points, objectives], smaller is better; points not better than `reference` count nothing.
        reference: [objectives].
    """
    costs = costs[(costs < reference).all(axis=1)]
    if len(costs) == 0:
        return 0.0
    if costs.shape[1] == 1:
        return float(reference[0] - costs[:, 0].min())
    costs = np.unique(costs[nondominated(costs)], axis=0)
    if costs.shape[1] == 2:  # sorted by the first column, hence falling in the second
        tops = np.concatenate([reference[1:], costs[:-1, 1]])
        return float(((reference[0] - costs[:, 0]) * (tops - costs[:, 1])).sum())
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    ends = np.append(costs[1:, -1], reference[-1])
    depths = ends - costs[:, -1]
    return sum(
        float(depth) * hypervolume(costs[: i + 1, :-1], reference[:-1]) for i, depth in enumerate(depths) if depth > 0
    )


def improvements(candidates: Array, front: Array, reference: Array, corners: Array | None = None) -> Array:
    """By how much each candidate alone would raise the hypervolume of the front.

    Two objectives: exact. Otherwise the share of `corners` (points spread over the box below the reference) that the
    candidate would newly dominate.

    Args:
        candidates: [candidates, objectives], smaller is better.
        front: [points, objectives].
        reference: [objectives].
        corners: [samples, objectives], needed unless there are two objectives.

    Returns:
        float64 [candidates].

    Raises:
        ValueError: `corners` are needed and missing.
    """
    if candidates.shape[1] == 2:
        inside = front[(front < reference).all(axis=1)]
        steps = np.unique(inside[nondominated(inside)], axis=0)
        lefts = np.concatenate([[-np.inf], steps[:, 0]])
        rights = np.concatenate([steps[:, 0], reference[:1]])
        tops = np.concatenate([reference[1:], steps[:, 1]])
        widths = rights - np.maximum(lefts, candidates[:, :1])
        heights = tops - candidates[:, 1:]
        return np.asarray((widths.clip(0) * heights.clip(0)).sum(axis=1))
    if corners is None:
        raise ValueError(f"improvements in {candidates.shape[1]} objectives need sample corners, got None")
    taken = np.zeros(len(corners), dtype=bool)
    for point in front:
        taken |= (point <= corners).all(axis=1)
    free = corners[~taken]
    covered = np.ones((len(candidates), len(free)), dtype=bool)
    for axis in range(candidates.shape[1]):
        covered &= candidates[:, axis, None] <= free[None, :, axis]
    return np.asarray(covered.sum(axis=1) / max(1, len(corners)), dtype=np.float64)
