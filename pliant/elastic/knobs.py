"""Knobs: from groups and spans to what can be chosen."""

from collections.abc import Mapping, Sequence

from pliant.core import Knob, Space
from pliant.graph.graph import Graph
from pliant.graph.inner import fits
from pliant.graph.kernels import is_asked

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
            `{"width:stem": [1.0]}` freezes the stem. What bends only where it is asked for (`kernel:*`: odd sizes,
            those above a convolution's own are passed over; `resolution:x`: pixels; `length:x`: positions) takes
            counts from patterns that name its kind.
        round_to: shares are rounded to multiples of this where there are more than four times as many units.
        tie: patterns such as `width:stages.1.*`: all that fits one is one knob, named by the pattern.

    Raises:
        ValueError: a pattern that fits no knob, tied widths of different sizes, a choice out of range, or choices
            without the whole.
    """
    rules = dict(choices or {})
    units = {graph.groups[i].name: graph.groups[i].units for i in groups}
    least = {graph.groups[i].name: graph.groups[i].floor for i in groups}
    ordered = {graph.groups[i].name: graph.groups[i] for i in groups if graph.groups[i].ordered}
    names = [*units, *graph.span_names]
    for what, pattern in [("choices", rule) for rule in rules] + [("tie", rule) for rule in tie]:
        if not any(fits(name, pattern) for name in names):
            raise ValueError(f"{what}: {pattern!r} fits no knob; {_those_there(graph, pattern, names)}")
    merged: dict[str, list[str]] = {}
    for name in names:
        merged.setdefault(next((pattern for pattern in tie if fits(name, pattern)), name), []).append(name)
    knobs = []
    for knob, members in merged.items():
        given = [values for pattern, values in rules.items() if any(fits(m, pattern) for m in (knob, *members))]
        sizes = {units.get(member, True) for member in members}
        if len(sizes) > 1:
            raise ValueError(f"tie: {knob!r} fits knobs of different sizes ({', '.join(members)})")
        if len({member.partition(":")[0] for member in members if member in ordered or members[0] in ordered}) > 1:
            raise ValueError(f"tie: {knob!r} fits knobs of different kinds ({', '.join(members)})")
        whole = sizes.pop()
        if members[0] in ordered:
            kind, floor = ordered[members[0]].kind, max(ordered[member].floor for member in members)
            lists = [values for pattern, values in rules.items()
                     if is_asked(knob, [pattern]) or any(is_asked(m, [pattern]) for m in members)]  # fmt: skip
            knobs.append(Knob(knob, _places(knob, kind, lists[-1] if lists else (whole,), whole, floor)))
        elif whole is True:
            knobs.append(_depth(knob, given[-1] if given else (False, True)))
        else:
            floor = 1 if knob.startswith(("heads:", "experts:")) else min(min_size, whole)
            needed = max(least.get(member, 1) for member in members)
            floor = max(floor, needed)
            counts = {_count(v, whole, floor, knob, round_to) for v in (given[-1] if given else _SHARES)}
            if counts and min(counts) < needed:
                raise ValueError(
                    f"choices of {knob}: the network chooses {needed} of them at a time, got {min(counts)}"
                )
            if whole not in counts:
                problem = f"choices of {knob} must include 1.0 or {whole}, got {list(given[-1])}"
                raise ValueError(f"{problem}: the whole network is always in the family")
            knobs.append(Knob(knob, tuple(sorted(counts))))
    return Space([knob for knob in knobs if len(knob.choices) > 1])


def _those_there(graph: Graph, pattern: str, names: Sequence[str]) -> str:
    """What can be named instead, and why what was meant does not bend."""
    kind = pattern.partition(":")[0]
    refused = [
        f"{rigid.module or 'it'} ({rigid.reason})" for rigid in graph.rigid if rigid.reason.startswith(f"{kind}: ")
    ]
    told = f"knobs are {', '.join(names) or '(none)'}" + (f"; cannot bend: {', '.join(refused)}" if refused else "")
    if kind != "block":
        return told
    return f"{told}; modules that can be skipped are {', '.join(graph.skippable) or '(none)'}"


def _places(name: str, kind: str, values: Sequence[float | int | bool], whole: int, floor: int) -> tuple[int, ...]:
    """The choices of a knob whose units have an order: kernel sizes, pixels, positions."""
    sizes = set()
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"choices of {name} are counts, not shares, got {value!r}")
        if kind == "kernel" and value % 2 == 0:
            raise ValueError(f"choices of {name} are odd kernel sizes, got {value}")
        if value > whole and kind == "kernel":
            continue  # one list serves kernels of several sizes
        if not floor <= value <= whole:
            raise ValueError(f"choices of {name} must be in {floor}..{whole}, got {value}")
        sizes.add(value)
    if whole not in sizes:
        problem = f"choices of {name} must include {whole}, got {list(values)}"
        raise ValueError(f"{problem}: the whole network is always in the family")
    return tuple(sorted(sizes))


def knob_of(space: Space, name: str) -> str:
    """The knob that a group or span hangs on: its own, or the pattern it is tied by; its own name where it has none."""
    names = [knob.name for knob in space]
    if name in names:
        return name
    return next((pattern for pattern in names if fits(name, pattern)), name)


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
