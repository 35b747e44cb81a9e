"""How the sub-networks of an artifact share weights: the part of the grammar that `layout` is.

    layout := {form, why, measured: {name: number}, switch: {name, size} | null}
    state  := ... as in `pliant_runtime.grammar`, with `on: [int]` where the form is "shells"
            | {like: state, on: [int]}                             the same graph and session with other switches

In the form "slices" every sub-network has a graph of its own, and its weights are cut out of shared ones when it is
loaded. In the form "shells" there is one graph, whose input `switch` (bool [size]) turns on the shells of weights that
a sub-network uses; `on` lists them. An artifact without a layout is one of slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from pliant_runtime.jsonish import Node

FORMS = ("slices", "shells")
_MOST_SWITCHES = 100_000


@dataclass(frozen=True)
class Switch:
    """The graph input that chooses the sub-network: bool [size]."""

    name: str
    size: int


@dataclass(frozen=True)
class Layout:
    """How weights are shared, why so, and what was measured of it (ratios are shells over slices)."""

    form: str
    why: str
    measured: Mapping[str, float]
    switch: Switch | None


class Switched(Protocol):
    """A state, as far as its switches go."""

    @property
    def like(self) -> int | None:
        """The state whose graph and session it uses; None for its own."""
        ...

    @property
    def on(self) -> tuple[int, ...] | None:
        """The switches that are on; None where there are none."""
        ...


S = TypeVar("S", bound=Switched)


def read_layout(node: Node) -> Layout:
    """The layout of a program. Raises `ArtifactError` where it is not as the grammar says."""
    parts = node.object(need=("form", "why", "measured", "switch"))
    form = parts["form"].choice(FORMS)
    measured = {name: item.number() for name, item in parts["measured"].mapping(100).items()}
    switch = None
    if parts["switch"].value is not None:
        inner = parts["switch"].object(need=("name", "size"))
        switch = Switch(inner["name"].text(500), inner["size"].integer(1, _MOST_SWITCHES))
    if (switch is None) != (form == "slices"):
        parts["switch"].fail(f"does not go with the form {form!r}")
    return Layout(form, parts["why"].text(1000), measured, switch)


def read_on(node: Node) -> tuple[int, ...]:
    """The switches that are on, ascending."""
    found = tuple(node.list(lambda item: item.integer(0, _MOST_SWITCHES - 1), most=_MOST_SWITCHES))
    if any(one >= other for one, other in pairwise(found)):
        node.fail("must ascend")
    return found


def is_like(node: Node) -> bool:
    """Whether a state is said to be like another one."""
    return isinstance(node.value, dict) and "like" in node.value


def like(node: Node, states: Sequence[S]) -> S:
    """A state like one before it."""
    parts = node.object(need=("like", "on"))
    number = parts["like"].integer()
    if number >= len(states) or states[number].like is not None or states[number].on is None:
        parts["like"].fail(f"must be an earlier state with a graph and switches, got {number}")
    changes: dict[str, Any] = {"like": number, "on": read_on(parts["on"])}
    return replace(states[number], **changes)  # type: ignore[type-var]  # states are dataclasses


def check_layout(layout: Layout | None, states: Sequence[Switched], file: str) -> None:
    """The switches of all states fit the layout. Raises `ArtifactError` where they do not."""
    switch = None if layout is None else layout.switch
    for number, state in enumerate(states):
        place = Node(None, f"states[{number}]", file)
        if switch is None:
            if state.on is not None:
                place.fail("has switches, the layout has none")
        elif state.on is None or state.like != (0 if number else None):
            place.fail("must be like state 0, because the layout is one of shells")
        elif state.on and state.on[-1] >= switch.size:
            place.fail(f"turns on switch {state.on[-1]}, there are {switch.size}")
