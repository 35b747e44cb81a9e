"""Knobs: from groups and spans to what can be chosen."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from pliant.core import Knob, Space
from pliant.graph.graph import Graph

Choices = Mapping[str, Sequence[float | int | bool]]

_SHARES = (0.25, 0.5, 0.75, 1.0)


def make_space(graph: Graph, groups: Sequence[int], *, min_size: int, choices: Choices | None) -> Space:
    """The space of a graph.

    Args:
        graph: the traced network.
        groups: indices of the groups that may bend.
        min_size: the smallest number of units a width keeps (heads: one).
        choices: by knob-name pattern (`width:*`, `depth:blocks.3.*`): kept counts (int), shares (float in (0, 1]) or,
            for depth, booleans. Patterns that come later win. Knobs with one choice are left out.

    Raises:
        ValueError: a pattern that fits no knob, a choice out of range, or choices without the whole.
    """
    rules = dict(choices or {})
    names = [graph.groups[i].name for i in groups] + list(graph.span_names)
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"choices: {pattern!r} fits no knob; knobs are {', '.join(names) or '(none)'}")
    knobs = []
    for i in groups:
        group = graph.groups[i]
        floor = 1 if group.kind == "heads" else min(min_size, group.units)
        given = [values for pattern, values in rules.items() if fnmatchcase(group.name, pattern)]
        counts = sorted({_count(v, group.units, floor, group.name) for v in (given[-1] if given else _SHARES)})
        if group.units not in counts:
            problem = f"choices of {group.name} must include 1.0 or {group.units}, got {list(given[-1])}"
            raise ValueError(f"{problem}: the whole network is always in the family")
        knobs.append(Knob(group.name, tuple(counts)))
    for name in graph.span_names:
        given = [values for pattern, values in rules.items() if fnmatchcase(name, pattern)]
        flags = sorted({bool(value) for value in (given[-1] if given else (False, True))})
        if True not in flags:
            raise ValueError(f"choices of {name} must include True: the whole network is always in the family")
        knobs.append(Knob(name, tuple(flags)))
    return Space([knob for knob in knobs if len(knob.choices) > 1])


def _count(value: float | int | bool, units: int, floor: int, name: str) -> int:
    """A share or a count as a count: shares are rounded to 8 where there are more than 32 units."""
    if isinstance(value, bool):
        raise ValueError(f"choices of {name} are counts or shares, got {value!r}")
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ValueError(f"choices of {name}: a share must be in (0, 1], got {value}")
        step = 8 if units > 32 else 1
        rounded = units if value == 1 else max(step, round(units * value / step) * step)
        return min(max(rounded, floor), units)
    if not 1 <= value <= units:
        raise ValueError(f"choices of {name}: a count must be in 1..{units}, got {value}")
    return value
