"""A compiled network that decides against the network itself: inputs, every edge, decisions near their threshold."""

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import PliantError, call
from pliant.deploy.decide import Deciding
from pliant.deploy.verify import arrays
from pliant.flow.errors import Place
from pliant_runtime import Family
from pliant_runtime.gaps import gap

TOLERANCE = 1e-3
NEAR = 1e-5
"""A decision closer than this to its threshold, relative to what is compared, may fall otherwise on another machine."""
FAR = 1e-3
"""Rows stored for later checks keep this distance from every threshold."""
_FORCED, _LONGEST, _FAR = 600, 400, 1 << 30
Way = list[tuple[int, int]]


@dataclasses.dataclass
class Proof:
    """What was tried.

    Attributes:
        inputs: rows run as they are.
        mismatches: of these, rows answered otherwise although no decision was near its threshold.
        near: rows answered otherwise with a decision near its threshold.
        forced: runs in which decisions were forced, to take edges no row took.
        forced_mismatches: of these, those answered otherwise.
        unfollowed: edges that could not be forced (the network fails or does not end there, or a counter forbids them).
        edges: of the program.
        taken: by rows as they are.
        covered: by rows or forced.
        largest: difference to torch, relative to the largest magnitude.
        example: the first mismatch in words.
        ways: (state, side) to how many times rows as they are took it.
        checked: the edges that rows took or that were forced.
    """

    inputs: int = 0
    mismatches: int = 0
    near: int = 0
    forced: int = 0
    forced_mismatches: int = 0
    unfollowed: int = 0
    edges: int = 0
    taken: int = 0
    covered: int = 0
    largest: float = 0.0
    example: str = ""
    ways: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    checked: set[tuple[int, int]] = dataclasses.field(default_factory=set)

    def told(self) -> str:
        """In one line."""
        return (
            f"{self.inputs} inputs, {self.mismatches} mismatches ({self.near} near a threshold); {self.covered} of "
            f"{self.edges} edges checked ({self.taken} by inputs, {self.forced} forced runs, {self.forced_mismatches} "
            f"mismatches, {self.unfollowed} not followed); largest error {self.largest:.1e}"
        )


def prove(net: Deciding, eager: nn.Module, family: Family, inputs: Sequence[Any], *, force: bool = True) -> Proof:
    """Compare an artifact with its network.

    Args:
        net: as it was taken apart.
        eager: the network itself.
        family: the loaded artifact.
        inputs: rows, each as the network takes it.
        force: whether edges that no row took are forced.
    """
    proof = Proof(edges=sum(len(state.edges) for state in net.flow.states))
    taken: set[tuple[int, int]] = set()
    for each in inputs:
        proof.inputs += 1
        try:
            with torch.no_grad():
                wanted = call(eager, each)
        except Exception as error:  # what the network raises, the program must raise
            _same_error(error, family, each, proof)
            continue
        got, way = family.trace(arrays(each))
        taken |= set(way)
        proof.ways.update(way)
        difference = apart(wanted, got)
        if difference is None or not difference <= TOLERANCE:
            _judge(net, each, proof, wanted, got)
        else:
            proof.largest = max(proof.largest, difference)
    proof.taken = len(taken)
    if force:
        taken |= _force(net, family, inputs, taken, proof)
    proof.covered, proof.checked = len(taken), taken
    return proof


def _same_error(error: Exception, family: Family, inputs: Any, proof: Proof) -> None:
    try:
        family.trace(arrays(inputs))
        got = "an answer"
    except Exception as other:  # compared with the network's
        got = f"{type(other).__name__}: {other}"
    if type(error).__name__ not in got or str(error) not in got:
        proof.mismatches += 1
        proof.example = proof.example or f"torch raises {type(error).__name__}: {error}, the program gives {got}"


def _judge(net: Deciding, inputs: Any, proof: Proof, wanted: Any, got: Any) -> None:
    margins: list[float] = []
    try:
        net.flow.follow(inputs, lambda _, side: side, margins=margins)
    except PliantError:
        margins = []
    if margins and min(margins) < NEAR:
        proof.near += 1
        return
    proof.mismatches += 1
    proof.example = proof.example or f"torch returns {_short(wanted)}, the program {_short(got)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def apart(wanted: Any, got: Any) -> float | None:
    """The largest relative difference between what a network and its program return; None for another structure."""
    if isinstance(wanted, Tensor):
        if not isinstance(got, np.ndarray):
            return None
        exact = not wanted.is_floating_point()
        found = gap(wanted.detach().cpu().numpy(), got)[1]
        return found if not exact else (0.0 if found == 0 else float("inf"))
    if dataclasses.is_dataclass(wanted) and not isinstance(wanted, type):
        pairs = [(field.name, getattr(wanted, field.name)) for field in dataclasses.fields(wanted)]
        wanted = {name: value for name, value in pairs if value is not None}
    if isinstance(wanted, Mapping):
        if not isinstance(got, Mapping) or [str(key) for key in wanted] != list(got):
            return None
        return _worst([apart(one, other) for one, other in zip(wanted.values(), got.values(), strict=True)])
    if isinstance(wanted, tuple | list):
        same = isinstance(got, tuple if isinstance(wanted, tuple) else list) and len(got) == len(wanted)
        return _worst([apart(one, other) for one, other in zip(wanted, got, strict=True)]) if same else None
    if type(wanted) is not type(got):
        return None
    if isinstance(wanted, float) and wanted != got:
        return 0.0 if wanted != wanted and got != got else abs(wanted - got) / max(abs(wanted), 1e-12)
    return 0.0 if wanted == got else None


def values_in(value: Any) -> list[Any]:
    """The tensors and numbers in what a network returns, depth first, as arrays."""
    if isinstance(value, Tensor):
        return [value.detach().cpu().numpy()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [array for item in value for array in values_in(item)]
    return [np.asarray(value)] if isinstance(value, bool | int | float) else []


def to_check(net: Deciding, eager: nn.Module, rows: Sequence[Any], *, most: int = 4) -> list[tuple[Any, list[Any]]]:
    """Rows that go different ways, none of them near a threshold, with what the network gives for them."""
    ways: set[tuple[tuple[Place, int], ...]] = set()
    found: list[tuple[Any, list[Any]]] = []
    for row in rows:
        way: list[tuple[Place, int]] = []
        margins: list[float] = []

        def noted(place: Place, side: int, way: list[tuple[Place, int]] = way) -> int:
            way.append((place, side))
            return side

        try:
            net.flow.follow(row, noted, margins=margins)
            with torch.no_grad():
                values = values_in(call(eager, row))
        except Exception:  # a row on which the network fails is no example
            continue
        if min(margins, default=1.0) > FAR and tuple(way) not in ways:
            ways.add(tuple(way))
            found.append((row, values))
        if len(found) == most or (net.fixed and found):
            break
    return found


def _worst(found: list[float | None]) -> float | None:
    if any(each is None for each in found):
        return None
    return max((each for each in found if each is not None), default=0.0)


# -- forced decisions -------------------------------------------------------------------------------------------------


def _force(
    net: Deciding, family: Family, inputs: Sequence[Any], taken: set[tuple[int, int]], proof: Proof
) -> set[tuple[int, int]]:
    done: set[tuple[int, int]] = set()
    for way in _tours(family, taken):
        if proof.forced < _FORCED:
            done |= _forced(net, family, inputs[proof.forced % len(inputs)], way, proof)
    for edge, way in _ways(family).items():  # each by itself that no tour took
        if edge in taken or edge in done or proof.forced >= _FORCED:
            continue
        followed = _forced(net, family, inputs[proof.forced % len(inputs)], [*way, edge], proof)
        done |= followed
        proof.unfollowed += edge not in followed
    return done


def _tours(family: Family, taken: set[tuple[int, int]]) -> Iterator[Way]:
    """Few ways that together take the edges nobody took, each as many of them as it meets."""
    steps = [state.step for state in family.program.states]
    sides = [[edge.state for edge in step.next.edges] if step is not None else [] for step in steps]
    ends = _distances({n for n, step in enumerate(steps) if step is not None and step.next.kind == "return"}, sides)
    todo = {(n, side) for n, each in enumerate(sides) for side, to in enumerate(each) if to in ends} - taken
    while todo:
        number, tour, left = 0, Way(), len(todo)
        far = _distances({state for state, _ in todo}, sides)
        while number in far and len(tour) < _LONGEST:
            open_ = [side for side in range(len(sides[number])) if (number, side) in todo]
            side = open_[0] if open_ else min(range(len(sides[number])), key=lambda n: far.get(sides[number][n], _FAR))
            tour.append((number, side))
            if open_:
                todo.discard((number, side))
                far = _distances({state for state, _ in todo}, sides)
            number = sides[number][side]
        if len(todo) == left:
            return
        yield tour


def _distances(targets: set[int], sides: list[list[int]]) -> dict[int, int]:
    """How many edges lie between a state and the nearest of some; states that lead to none are missing."""
    back: dict[int, list[int]] = {}
    for number, each in enumerate(sides):
        for target in each:
            back.setdefault(target, []).append(number)
    found, queue = dict.fromkeys(targets, 0), deque(targets)
    while queue:
        number = queue.popleft()
        for before in back.get(number, ()):
            if before not in found:
                found[before] = found[number] + 1
                queue.append(before)
    return found


def _ways(family: Family) -> dict[tuple[int, int], Way]:
    """The shortest way to every edge."""
    found: dict[tuple[int, int], Way] = {}
    seen, todo = {0}, deque([(0, Way())])
    while todo:
        number, way = todo.popleft()
        step = family.program.states[number].step
        for side, edge in enumerate(step.next.edges if step is not None else ()):
            found[number, side] = way
            if edge.state not in seen:
                seen.add(edge.state)
                todo.append((edge.state, [*way, (number, side)]))
    return found


def _forced(net: Deciding, family: Family, inputs: Any, way: Way, proof: Proof) -> set[tuple[int, int]]:
    """Run network and program along a way; returns the edges both took."""
    states = net.flow.states
    wishes = deque((states[number].decided, side, states[number].keys) for number, side in way)
    chosen: deque[tuple[Place, int]] = deque()

    def choose(place: Place, natural: int) -> int:
        while wishes and wishes[0][0] != place:
            wishes.popleft()  # a decision on a counter, which is a plain number here
        side = natural
        if wishes:
            _, wish, keys = wishes.popleft()
            side = keys[wish] if keys is not None else wish
        chosen.append((place, side))
        return side

    try:
        wanted = net.flow.follow(inputs, choose)
    except Exception:  # the network's own code may fail where no input leads
        return set()

    def replay(number: int, natural: int) -> int:
        state = states[number]
        if not chosen or chosen[0][0] != state.decided:
            return natural
        side = chosen.popleft()[1]
        return state.keys.index(side) if state.keys is not None else side

    proof.forced += 1
    try:
        got, taken = family.trace(arrays(inputs), forced=replay)
    except Exception:  # told as a mismatch
        got, taken = None, []
    if chosen:  # the ways parted: a decision on a counter lies on the same line
        return set()
    difference = apart(wanted, got)
    if difference is None or not difference <= TOLERANCE:
        proof.forced_mismatches += 1
        proof.example = proof.example or f"forced: torch returns {_short(wanted)}, the program {_short(got)}"
    return set(taken)
