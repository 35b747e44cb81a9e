"""Knobs: from groups and spans to what can be chosen."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from pliant.core import Knob, Space
from pliant.graph.graph import Graph

Choices = Mapping[str, Sequence[float | int | bool]]

_SHARES = (0.25, 0.5, 0.75, 1.0)


def make_space(
    graph: Graph,
    groups: Sequence[int],
    *,
    min_size: int = 4,
    choices: Choices | None = None,
    round_to: int = 8,
    tie: Sequence[str] = (),
) -> Space:
    """The space of a graph.

    Args:
        graph: the traced network.
        groups: indices of the groups that may bend.
        min_size: the smallest number of units a width keeps (heads: one).
        choices: by knob-name pattern (`width:*`, `depth:blocks.3.*`): kept counts (int), shares (float in (0, 1]) or,
            for depth, booleans. Patterns that come later win. Knobs with one choice are left out, so that
            `{"width:stem": [1.0]}` freezes the stem.
        round_to: shares are rounded to multiples of this where there are more than four times as many units.
        tie: patterns such as `width:stages.1.*`: all that fits one is one knob, named by the pattern.

    Raises:
        ValueError: a pattern that fits no knob, tied widths of different sizes, a choice out of range, or choices
            without the whole.
    """
    rules = dict(choices or {})
    units = {graph.groups[i].name: graph.groups[i].units for i in groups}
    names = [*units, *graph.span_names]
    for what, pattern in [("choices", rule) for rule in rules] + [("tie", rule) for rule in tie]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{what}: {pattern!r} fits no knob; knobs are {', '.join(names) or '(none)'}")
    merged: dict[str, list[str]] = {}
    for name in names:
        merged.setdefault(next((pattern for pattern in tie if fnmatchcase(name, pattern)), name), []).append(name)
    knobs = []
    for knob, members in merged.items():
        given = [values for pattern, values in rules.items() if any(fnmatchcase(m, pattern) for m in (knob, *members))]
        sizes = {units.get(member, True) for member in members}
        if len(sizes) > 1:
            raise ValueError(f"tie: {knob!r} fits knobs of different sizes ({', '.join(members)})")
        whole = sizes.pop()
        if whole is True:
            knobs.append(_depth(knob, given[-1] if given else (False, True)))
        else:
            floor = 1 if knob.startswith("heads:") else min(min_size, whole)
            counts = {_count(v, whole, floor, knob, round_to) for v in (given[-1] if given else _SHARES)}
            if whole not in counts:
                problem = f"choices of {knob} must include 1.0 or {whole}, got {list(given[-1])}"
                raise ValueError(f"{problem}: the whole network is always in the family")
            knobs.append(Knob(knob, tuple(sorted(counts))))
    return Space([knob for knob in knobs if len(knob.choices) > 1])


def knob_of(space: Space, name: str) -> str:
    """The knob that a group or span hangs on: its own, or the pattern it is tied by; its own name where it has none."""
    names = [knob.name for knob in space]
    if name in names:
        return name
    return next((pattern for pattern in names if any(c in pattern for c in "*?[") and fnmatchcase(name, pattern)), name)


def _depth(name: str, values: Sequence[float | int | bool]) -> Knob:
    flags = sorted({bool(value) for value in values})
    if True not in flags:
        raise ValueError(f"choices of {name} must include True: the whole network is always in the family")
    return Knob(name, tuple(flags))


def _count(value: float | int | bool, units: int, floor: int, name: str, round_to: int) -> int:
    """A share or a count as a count."""
    if isinstance(value, bool):
        raise ValueError(f"choices of {name} are counts or shares, got {value!r}")
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ValueError(f"choices of {name}: a share must be in (0, 1], got {value}")
        step = round_to if units > 4 * round_to else 1
        rounded = units if value == 1 else max(step, round(units * value / step) * step)
        return min(max(rounded, floor), units)
    if not 1 <= value <= units:
        raise ValueError(f"choices of {name}: a count must be in 1..{units}, got {value}")
    return value
