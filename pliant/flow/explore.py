"""All states of a network: from the start of its forward over every side of every decision.

Basic-block versioning: what follows a decision is a state, named by the place in the code and the pattern of the
variables that are still read. Equal patterns are one state, which closes loops and joins ways. Python numbers that
differ between visits of one pattern (counters) become run-time numbers, unless the code needs them as numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pliant.core import PliantError, as_call, map_tensors
from pliant.core._torch_private import fake_mode, memory_of, version_of
from pliant.core.forms import leaves_of, rebuilt
from pliant.flow.builtins import Operators
from pliant.flow.errors import Place, Rejected, Stop
from pliant.flow.live import Code
from pliant.flow.machine import Decision, Machine, Outcome, Pin, Raised, Restart, Returned
from pliant.flow.reader import Constants, Held, reading, unchanged
from pliant.flow.scalar import DTYPES, Sym, is_free, kind_of
from pliant.flow.sizes import Sizes
from pliant.flow.values import Env, Freezer, Pattern, reordered, thaw

LIMIT = 1500
"""Most states of a program."""
_FIRST = 250
"""States after which counters are tried as plain numbers."""


@dataclass(frozen=True)
class In:
    """A parameter of the state, handed on as it is."""

    index: int


@dataclass(frozen=True)
class Out:
    """An output of the state's block."""

    index: int


@dataclass(frozen=True)
class Const:
    """A number that is known when the program is made."""

    value: bool | int | float


Arg = In | Out | Const


@dataclass(frozen=True)
class Edge:
    """One side of a decision: the next state, and a value for each of its parameters."""

    target: int
    args: tuple[Arg, ...]


@dataclass
class State:
    """A block with what follows it.

    Attributes:
        place: where in the code it begins.
        pattern: of the variables at its start.
        wide: which numbers of the pattern are parameters.
        values: the other numbers.
        params: dtype and shape of its parameters; free sizes are `torch.SymInt`s.
        outputs: where the block's outputs are found in an outcome.
        made: the shapes of the outputs.
        counted: which of the plain numbers returned follow from free sizes.
        value: what is decided on; None where nothing is.
        edges: the sides of the decision.
        keys: integers that choose an edge; None for an `if` (true, false).
        returns: the structure returned, with `Arg`s for tensors.
        raised: kind and message of an error.
        constants: tensors of the network that the block uses.
        decided: where in the code the decision is.
    """

    place: Place
    pattern: Pattern
    wide: frozenset[int]
    values: tuple[Any, ...]
    params: list[tuple[torch.dtype, tuple[int, ...]]]
    written: set[int] = field(default_factory=set)
    outputs: list[tuple[Any, ...]] = field(default_factory=list)
    made: list[tuple[Any, ...]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)
    value: Arg | None = None
    edges: list[Edge] = field(default_factory=list)
    keys: list[int] | None = None
    returns: Any = None
    raised: tuple[str, str] | None = None
    constants: dict[int, Tensor] = field(default_factory=dict)
    decided: Place | None = None
    outcome: Outcome | None = None
    cases: list[Pattern] = field(default_factory=list)

    @property
    def at(self) -> str:
        """`net.py:12`."""
        return self.place.short


@dataclass
class Scalar:
    """A run-time number among what is returned."""

    arg: Arg
    kind: str


@dataclass
class Leaf:
    """A tensor among what is returned."""

    arg: Arg


class Flow:
    """A network taken apart.

    Args:
        net: in evaluation mode, on the CPU; its code is run, its tensors are not changed.
        example: inputs for one row.
        limit: most states.
        sizes: the sizes of inputs that stay free; None where all are the example's.

    Raises:
        Rejected: the forward cannot become a program.
    """

    def __init__(self, net: nn.Module, example: Any, *, limit: int = LIMIT, sizes: Sizes | None = None) -> None:
        self.net, self.example, self.limit, self.sizes = net, example, limit, sizes
        self.code, self.constants = Code(), Constants()
        self.operators = Operators(self.constants, sizes)
        self.names = self.operators.names()
        self.freezer = Freezer(self.code, lambda tensor: tensor in self.constants, memory_of)
        self.mode, self.held = fake_mode() if sizes is None else sizes.mode, Held(net)
        self.pinned: set[Any] = set()
        self.states: list[State] = []
        for tensor in [*net.parameters(), *net.buffers(), *_plain_tensors(net)]:
            self.constants.by_id[id(tensor)] = tensor
        with _installed(self.names), self.still():
            self._explore()

    def still(self) -> AbstractContextManager[Any]:
        """While it lasts, nothing can change the network; for many runs, because each alone would begin and end it."""
        return unchanged(self.held)

    # -- exploring -----------------------------------------------------------------------------------------------------

    def _explore(self) -> None:
        """Find all states.

        Counters are run-time numbers first, which keeps states few. Where states do not come to an end that way, a
        counter may be what bounds them (a stack with depths), and they are plain numbers; else it is as at first. With
        free lengths there is no second try: what ends with plain numbers would end at the example's lengths alone.
        """
        most, self.limit = self.limit, min(_FIRST, self.limit)
        try:
            self._all_explored()
        except _Endless as first:
            counters = {label for group in self._groups.values() for label in group.counters()}
            self.limit = most
            if not counters - self.pinned or self.sizes is not None:
                if most <= _FIRST:
                    raise first.refusal from None
                self._last_try()
                return
            pinned, self.pinned = set(self.pinned), self.pinned | counters
            try:
                self._all_explored()
            except _Endless:
                self.pinned = pinned
                self._last_try()

    def _last_try(self) -> None:
        try:
            self._all_explored()
        except _Endless as endless:
            raise endless.refusal from None

    def _all_explored(self) -> None:
        while not self._explored():
            pass

    def _explored(self) -> bool:
        """Whether it went through without a counter that must stay a plain number."""
        self.states = []
        self._known: dict[Any, int] = {}
        self._groups: dict[Any, _Group] = {}
        try:
            start = self._start()
            while True:
                size = sum(len(group.wide) for group in self._groups.values())
                reached = self._reach(start)
                if size == sum(len(group.wide) for group in self._groups.values()):
                    break
        except Pin as pin:
            if pin.origins <= self.pinned:
                raise pin.refusal from None
            self.pinned |= pin.origins
            return False
        self._finish(reached)
        return True

    def _start(self) -> Pattern:
        args, kwargs = as_call(self.example)
        machine = Machine(self.code, self.operators.symbolic, lambda: None, first=True)
        leaves = leaves_of((args, kwargs))
        self.inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with self.mode:
            fakes = [torch.empty(self._shape(n, leaf), dtype=leaf.dtype) for n, leaf in enumerate(self.inputs)]
        args, kwargs = rebuilt((args, kwargs), iter(fakes))
        try:
            machine.enter(self.net, args, kwargs, None)
        except Stop as stop:
            raise Rejected(stop.reason, None, stop.fix) from None
        pattern = self.freezer.freeze(machine.frames)
        reordered(pattern, fakes)  # every input has its slot, read or not
        return pattern

    def _shape(self, number: int, leaf: Tensor) -> tuple[Any, ...]:
        return tuple(leaf.shape) if self.sizes is None else self.sizes.shape(number, leaf.shape)

    def shape(self, shape: Sequence[Any]) -> tuple[int, ...]:
        """A shape of a parameter at the current lengths."""
        return tuple(shape) if self.sizes is None else self.sizes.values(shape)

    def labels(self, shape: Sequence[Any]) -> tuple[int | str, ...]:
        """A shape with text for free sizes."""
        return tuple(shape) if self.sizes is None else tuple(map(self.sizes.label, shape))

    def at(self, lengths: Mapping[str, int]) -> AbstractContextManager[Any]:
        """Other lengths than the example's for a while, where they are free."""
        return nullcontext() if self.sizes is None else self.sizes.at(lengths)

    def _reach(self, start: Pattern) -> list[int]:
        todo, seen = [self._intern(start)], list[int]()
        while todo:
            number = self._intern(self.states[todo.pop(0)].pattern)  # another one where a counter was widened since
            if number in seen:
                continue
            seen.append(number)
            state = self.states[number]
            if state.outcome is None:
                self._expand(number)
            todo += [self._intern(case) for case in state.cases]
        return seen

    def _intern(self, pattern: Pattern) -> int:
        group = self._groups.setdefault(pattern.key, _Group(list(pattern.numbers), list(pattern.labels)))
        for j, value in enumerate(pattern.numbers):
            sym = isinstance(value, Sym) or isinstance(group.first[j], Sym)
            differs = repr(group.first[j]) != repr(value) and pattern.labels[j] not in self.pinned
            if sym or differs:
                group.wide.add(j)
            if isinstance(value, Sym):
                group.symbolic.add(j)
                group.origins.setdefault(j, set()).update(value.origins)
        wide = frozenset(group.wide)
        values = tuple(None if j in wide else value for j, value in enumerate(pattern.numbers))
        key = (pattern.key, wide, tuple(map(repr, values)))
        if key not in self._known:
            if len(self.states) >= self.limit:
                raise _Endless(self._endless())
            shapes = [(tensor.dtype, tuple(tensor.shape)) for tensor in pattern.tensors]
            shapes += [(DTYPES[kind_of(pattern.numbers[j]) or "int"], ()) for j in sorted(wide)]
            self._known[key] = len(self.states)
            self.states.append(State(_place(pattern), pattern, wide, values, shapes))
        return int(self._known[key])

    def _endless(self) -> Rejected:
        """The refusal of a network whose variables never repeat, with the line and the variables."""
        decisions = [(state, state.outcome.place) for state in self.states if isinstance(state.outcome, Decision)]
        place = Counter(each for _, each in decisions).most_common(1)[0][0]
        there = [state for state, each in decisions if each == place][-40:]
        names: set[str] = set()
        for one, other in pairwise(there):
            names |= set(one.pattern.paths) ^ set(other.pattern.paths)
            if one.pattern.labels == other.pattern.labels:
                pairs = zip(one.values, other.values, one.pattern.labels, strict=True)
                names |= {label[1] for a, b, label in pairs if repr(a) != repr(b)}
        inside = {name for name in names if "[" in name} or names
        shown = sorted({name.partition("[")[0] for name in inside if not name.startswith("__")})
        what = f"{', '.join(shown[:3])} never repeats" if shown else "the variables never repeat"
        return Rejected(f"more than {self.limit} states: {what}", place,
                        "bound the loop, or keep its results in a tensor of a fixed size")  # fmt: skip

    def _expand(self, number: int) -> None:
        state = self.states[number]
        while True:
            with self.mode:
                given = [torch.empty(shape, dtype=dtype) for dtype, shape in state.params]
            self.constants.used.clear()
            paths = state.pattern.paths
            self.constants.guarded = {id(given[i]): paths[i] for i in state.pattern.shared}
            try:
                outcome = self.run(state, given, mode=self.mode, first=number == 0)
                written = {i for i, tensor in enumerate(given) if version_of(tensor)} - state.written
            except Restart:
                continue
            if not written:
                break
            if written & state.pattern.shared:
                name = state.pattern.paths[min(written & state.pattern.shared)]
                raise Rejected(f"{name} is changed in place, and another variable shares its memory", outcome.place,
                               "make a clone() of it first")  # fmt: skip
            state.written |= written
        state.constants = dict(self.constants.used)
        state.outcome, self._given = outcome, given
        if isinstance(outcome, Decision):
            with self.mode:
                sides = [outcome.fork(number) for number in range(len(outcome.sides))]
                state.cases = [self.freezer.freeze(side) for side in sides]
        state.given = given  # type: ignore[attr-defined]

    def run(self, state: State, given: list[Tensor], *, mode: Any = None, first: bool = False) -> Outcome:
        """One run of a block on tensors for the state's parameters (real ones where `mode` is None).

        Raises:
            Rejected: something that a program cannot hold.
            Restart: a statement was taken apart; run it again.
        """
        self.constants.analysing, self.constants.asleep = mode is not None, False
        with unchanged(self.held) as check, reading(self.constants, self.net, mode):
            given = [tensor.clone() if i in state.written else tensor for i, tensor in enumerate(given)]
            count = len(state.pattern.tensors)
            exploring = mode is not None or self.sizes is None
            size: Callable[[Any], Any] = (lambda each: each) if exploring else self.sizes.value  # type: ignore[union-attr]
            numbers, place = [size(value) for value in state.values], count
            for j in sorted(state.wide):
                kind = kind_of(state.pattern.numbers[j]) or "int"
                group = self._groups[state.pattern.key]
                own = set() if j in group.symbolic else {state.pattern.labels[j]}
                origins = group.origins.get(j, set()) | own
                numbers[j] = Sym(given[place], kind, frozenset(origins))
                place += 1
            frames = thaw(state.pattern, given[:count], numbers, size)
            machine = Machine(self.code, self.operators.symbolic, check, first=first)
            return machine.run(frames)

    # -- what the states are, once all are known -----------------------------------------------------------------------

    def _finish(self, reached: list[int]) -> None:
        order = {number: place for place, number in enumerate(reached)}
        for number in reached:
            state = self.states[number]
            self._describe(state, order)
        self.states = [self.states[number] for number in reached]

    def _describe(self, state: State, order: Mapping[int, int]) -> None:
        given: list[Tensor] = state.given  # type: ignore[attr-defined]
        refs = _Refs(given, state)
        outcome = state.outcome
        if isinstance(outcome, Raised):
            state.raised = (outcome.kind, outcome.message)
        elif isinstance(outcome, Returned):
            leaves: list[Any] = []
            with self.mode:
                shape = _structure(outcome.value, leaves, outcome.place, _Counted(state.counted))
            args = [refs.of(_tensor(leaf), ("leaf", i)) for i, leaf in enumerate(leaves)]
            state.returns = _filled(shape, leaves, args)
        elif isinstance(outcome, Decision):
            state.value, state.keys = refs.of(outcome.value, ("value",)), outcome.keys
            state.decided = outcome.place
            for c, case in enumerate(state.cases):
                number = self._intern(case)
                target = self.states[number]
                args = [refs.of(tensor, ("tensor", c, i)) for i, tensor in enumerate(case.tensors)]
                for j in sorted(target.wide):
                    value = case.numbers[j]
                    known = not isinstance(value, Sym) and not is_free(value)
                    args.append(Const(value) if known else refs.of(self._number(value), ("number", c, j)))
                state.edges.append(Edge(order[number], tuple(args)))
        state.outcome = None
        del state.given  # type: ignore[attr-defined]

    def _number(self, value: Any) -> Tensor:
        """A number that is known when the network runs, or follows from a free size, as a tensor without axes."""
        if isinstance(value, Sym):
            return value.tensor
        with self.mode if is_free(value) else nullcontext():
            return torch.full((), value, dtype=DTYPES[kind_of(value) or "int"])

    def outputs(self, state: State, given: list[Tensor]) -> list[Tensor]:
        """The outputs of a state's block for tensors of its parameters, computed by the network's own code."""
        with _installed(self.names):
            outcome = self.run(state, given)
            if isinstance(outcome, Raised) and state.raised is None:
                raise PliantError(f"{outcome.kind}: {outcome.message}", where=outcome.place.short)
            found: list[Tensor] = []
            sides = [outcome.fork(n) for n in range(len(outcome.sides))] if isinstance(outcome, Decision) else []
            cases = [self.freezer.freeze(side) for side in sides]
            leaves: list[Any] = []
            if isinstance(outcome, Returned):
                _structure(outcome.value, leaves, outcome.place, _Counted(state.counted, known=True))
            for path in state.outputs:
                if path[0] == "value":
                    assert isinstance(outcome, Decision)
                    found.append(outcome.value)
                elif path[0] == "leaf":
                    found.append(_tensor(leaves[path[1]]))
                elif path[0] == "tensor":
                    found.append(cases[path[1]].tensors[path[2]])
                else:
                    found.append(self._number(cases[path[1]].numbers[path[2]]))
            return found

    def follow(
        self, example: Any, choose: Callable[[Place, int], int], *, most: int = 500, margins: list[float] | None = None
    ) -> Any:
        """Run the network's own code on real inputs, taking the sides of decisions that `choose` wants.

        States, edges and patterns play no part here, so that they can be compared with it.

        Args:
            example: inputs for one row.
            choose: from the place of a decision and the side the tensor chose to the side to be taken.
            most: decisions after which it is given up.
            margins: receives for every decision how far its comparisons were from falling the other way, relative to
                what was compared.

        Returns:
            What the network returns, run-time numbers as plain ones.

        Raises:
            PliantError: it does not end.
            Exception: what the network's own code raises.
        """
        self.constants.analysing = self.constants.asleep = False
        self.operators.sizes = None  # a loop over a length is one of Python's here
        args, kwargs = as_call(map_tensors(lambda tensor: tensor.detach().clone(), example))
        machine = Machine(self.code, self.operators.symbolic, lambda: None, first=True)
        near = _Margins()
        with ExitStack() as stack:
            stack.callback(setattr, self.operators, "sizes", self.sizes)
            stack.enter_context(_installed(self.names))
            stack.enter_context(unchanged(self.held))
            if margins is not None:
                stack.enter_context(near)
            stack.enter_context(reading(self.constants, self.net))
            machine.enter(self.net, args, kwargs, None)
            frames = machine.frames
            for _ in range(most):
                try:
                    outcome = machine.run(frames)
                except (Restart, Pin) as error:
                    raise PliantError("the way leads through code that was not explored") from error
                if isinstance(outcome, Returned):
                    self.constants.asleep = True
                    return _plain(outcome.value)
                if not isinstance(outcome, Decision):
                    raise PliantError("the way ends in an error")
                self.constants.asleep = True
                natural = int(outcome.value)
                if margins is not None:
                    margins.append(near.taken())
                side = choose(outcome.place, natural)
                self.constants.asleep = False
                frames = outcome.go(1 - side if outcome.keys is None else outcome.keys.index(side))
        raise PliantError(f"the way takes more than {most} decisions")


def _plain(value: Any) -> Any:
    if isinstance(value, Sym):
        return value.tensor.item()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value)) if isinstance(value, tuple) else [_plain(item) for item in value]
    return value


class _Endless(Exception):
    """More states than allowed."""

    def __init__(self, refusal: Rejected) -> None:
        self.refusal = refusal


@dataclass
class _Group:
    """The visits of one pattern: its numbers at the first, which of them differ, which were known at run time alone."""

    first: list[Any]
    labels: list[Any]
    symbolic: set[int] = field(default_factory=set)
    wide: set[int] = field(default_factory=set)
    origins: dict[int, set[Any]] = field(default_factory=dict)

    def counters(self) -> set[Any]:
        """Labels of the numbers that differed between visits while they were plain."""
        return {self.labels[j] for j in self.wide - self.symbolic}.union(*self.origins.values())


class _Refs:
    def __init__(self, given: list[Tensor], state: State) -> None:
        self.params = {id(tensor): i for i, tensor in enumerate(given) if i not in state.written}
        self.state = state
        self.known: dict[int, int] = {}

    def of(self, tensor: Tensor, path: tuple[Any, ...]) -> Arg:
        if id(tensor) in self.params:
            return In(self.params[id(tensor)])
        if id(tensor) not in self.known:
            self.known[id(tensor)] = len(self.state.outputs)
            self.state.outputs.append(path)
            self.state.made.append(tuple(tensor.shape))
        return Out(self.known[id(tensor)])


def _tensor(leaf: Any) -> Tensor:
    tensor: Tensor = leaf.tensor if isinstance(leaf, Sym) else leaf
    return tensor


@dataclass
class _Counted:
    """Plain numbers in what is returned, in their order.

    Args:
        free: those that follow from free sizes.
        known: whether that is known; else it is noted.
    """

    free: set[int]
    known: bool = False
    at: int = -1

    def next(self, value: Any) -> bool:
        """Whether the next number follows from a free size."""
        self.at += 1
        if not self.known and is_free(value):
            self.free.add(self.at)
        return self.at in self.free


def _structure(value: Any, leaves: list[Any], place: Place, counted: _Counted) -> Any:
    """A returned value as the grammar of artifacts has it; tensors and run-time numbers go to `leaves`."""
    if is_free(value) or (isinstance(value, int | float) and not isinstance(value, bool)):
        if not counted.next(value):
            return {"py": value}
        number = kind_of(value) or "int"
        value = Sym(torch.full((1,), value, dtype=DTYPES[number]), number)
    if isinstance(value, Tensor | Sym):
        leaves.append(value)
        return {"t": len(leaves) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return {"py": value}
    if hasattr(value, "__dataclass_fields__"):
        pairs = [(name, getattr(value, name)) for name in value.__dataclass_fields__]
        return {"dict": {name: _structure(item, leaves, place, counted) for name, item in pairs if item is not None}}
    if isinstance(value, Mapping):
        if any(not isinstance(key, str | int) for key in value):
            raise Rejected("a dict with other keys than strings is returned", place, "key it by strings")
        return {"dict": {str(key): _structure(item, leaves, place, counted) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_structure(item, leaves, place, counted) for item in value]}
    raise Rejected(
        f"a {type(value).__name__} is returned", place, "return tensors, numbers, strings, tuples, lists or dicts"
    )


def _filled(shape: Any, leaves: list[Any], args: list[Arg]) -> Any:
    kind, inner = next(iter(shape.items()))
    if kind == "t":
        leaf = leaves[inner]
        return Scalar(args[inner], leaf.kind) if isinstance(leaf, Sym) else Leaf(args[inner])
    if kind == "dict":
        return {"dict": {key: _filled(item, leaves, args) for key, item in inner.items()}}
    if kind in ("list", "tuple"):
        return {kind: [_filled(item, leaves, args) for item in inner]}
    return shape


def _place(pattern: Pattern) -> Place:
    function, _, items, _ = pattern.template[-1]
    for kind, node, place in reversed(items):
        found = node[place] if kind == "seq" else node
        line = getattr(found, "lineno", None)
        if line is not None:
            return Place(function.code.co_filename, line)
    return Place(function.code.co_filename, function.node.lineno)


def _plain_tensors(net: nn.Module) -> Iterator[Tensor]:
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                yield value


@contextmanager
def _installed(names: Mapping[str, Any]) -> Iterator[None]:
    before, Env.FLOW = Env.FLOW, dict(names)
    try:
        yield
    finally:
        Env.FLOW = before


_COMPARING = frozenset({"lt", "le", "gt", "ge", "__lt__", "__le__", "__gt__", "__ge__", "argmax", "argmin"})


class _Margins(TorchFunctionMode):
    """Notes how close compared numbers are."""

    def __init__(self) -> None:
        super().__init__()
        self.least = float("inf")

    def taken(self) -> float:
        """The least since it was asked last."""
        found, self.least = self.least, float("inf")
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _COMPARING and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self.least = min(self.least, _margin(name, args))
        return func(*args, **(kwargs or {}))


def _margin(name: str, args: Any) -> float:
    if name.startswith("arg"):
        flat = args[0].double().reshape(-1)
        two = flat.topk(2, largest=name == "argmax").values if flat.numel() > 1 else flat.new_tensor([1.0, 0.0])
        one, other = two[0], two[1]
    else:
        one, other = args[0].double(), torch.as_tensor(args[1]).double()
    scale = torch.maximum(one.abs(), other.abs()).clamp(min=1e-12)
    return float(((one - other).abs() / scale).min()) if scale.numel() else float("inf")


_ASKING = frozenset(
    ["item", "__bool__", "is_nonzero", "__float__", "__int__", "__index__", "tolist", "numpy", "equal", "allclose"]
)


class _Asked(TorchFunctionMode):
    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.found = known, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ASKING and args and id(args[0]) not in self.known:
            self.found = True
        return func(*args, **(kwargs or {}))


def decides(net: nn.Module, example: Any) -> bool:
    """Whether a network asks a tensor for its value while it runs on an example, so that its way may depend on it.

    Raises:
        PliantError: it fails on the example.
    """
    args, kwargs = as_call(example)
    known = {id(tensor) for tensor in [*net.parameters(), *net.buffers(), *_plain_tensors(net)]}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Asked(known) as asked:
        try:
            net(*args, **kwargs)
        except Exception as error:  # whatever the network's own code raises
            if not asked.found:
                raise
            text = (str(error).strip().splitlines() or [""])[0]
            problem = f"the network fails on one row of the example: {type(error).__name__}: {text}"
            raise PliantError(problem, where=type(net).__name__, fix="give an example it runs on") from error
    return bool(asked.found)
