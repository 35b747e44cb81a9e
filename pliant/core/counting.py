"""How many configs a space has, and whether each of its knobs can be there at all."""

from collections.abc import Mapping, Sequence

Condition = tuple[int, frozenset[int]]
"""The number of a knob that stands before, and which of its choices let this one be there."""
Conditions = tuple[Condition, ...]


def boxes(counts: Sequence[int], conditions: Sequence[Conditions]) -> list[dict[int, frozenset[int]]]:
    """For each knob what all that it hangs on, near and far, must be for it to be there; an empty set: it never is.

    Conditions are conjunctions, hence so is everything that follows from them.

    Args:
        counts: choices of each knob.
        conditions: of each knob, all on knobs before it.
    """
    found: list[dict[int, frozenset[int]]] = []
    for own in conditions:
        box: dict[int, frozenset[int]] = {}
        for parent, allowed in own:
            for other, values in {**found[parent], parent: found[parent].get(parent, allowed) & allowed}.items():
                box[other] = box.get(other, frozenset(range(counts[other]))) & values
        found.append(box)
    return found


def count(counts: Sequence[int], conditions: Sequence[Conditions]) -> int:
    """The exact number of configs.

    Knobs that do not hang together multiply; the first of those that do is followed through its choices, those alike
    in what they let be there taken together.
    """
    known: dict[tuple[tuple[int, Conditions], ...], int] = {}

    def of(left: Mapping[int, Conditions]) -> int:
        total = 1
        for part in _together(left):
            key = tuple(sorted((knob, left[knob]) for knob in part))
            if key not in known:
                known[key] = follow({knob: left[knob] for knob in part})
            total *= known[key]
        return total

    def follow(left: Mapping[int, Conditions]) -> int:
        first = min(left)
        if len(left) == 1:
            return counts[first]
        lets: dict[frozenset[int], int] = {}
        hanging = [(knob, allowed) for knob, own in left.items() for parent, allowed in own if parent == first]
        for choice in range(counts[first]):
            barred = frozenset(knob for knob, allowed in hanging if choice not in allowed)
            lets[barred] = lets.get(barred, 0) + 1
        rest = {knob: own for knob, own in left.items() if knob != first}
        return sum(times * of(_without(rest, first, barred)) for barred, times in lets.items())

    return of(dict(enumerate(conditions)))


def _without(left: Mapping[int, Conditions], met: int, barred: frozenset[int]) -> dict[int, Conditions]:
    """What is left once the knob `met` is set: without those barred and what hangs on them."""
    gone, kept = set(barred), {}
    for knob in sorted(left):
        if knob in gone or any(parent in gone for parent, _ in left[knob]):
            gone.add(knob)
        else:
            kept[knob] = tuple(condition for condition in left[knob] if condition[0] != met)
    return kept


def _together(left: Mapping[int, Conditions]) -> list[list[int]]:
    """Knobs grouped by whether conditions connect them."""
    group = {knob: knob for knob in left}

    def root(knob: int) -> int:
        while group[knob] != knob:
            group[knob] = group[group[knob]]
            knob = group[knob]
        return knob

    for knob, own in left.items():
        for parent, _ in own:
            group[root(knob)] = root(parent)
    found: dict[int, list[int]] = {}
    for knob in left:
        found.setdefault(root(knob), []).append(knob)
    return list(found.values())
