"""The variables of all frames as a pattern: what must agree for two moments of a run to be the same state.

A pattern holds slots for tensors and for numbers that may differ; everything else (structure, strings, modules, types)
is a part of it. From a pattern and values for its slots the variables are made anew, so that what one branch does to
a list is not seen by the other.
"""

import enum
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pliant.flow.errors import Final, Undecided
from pliant.flow.live import Code, Item, Liveness
from pliant.flow.scalar import Kind, Sym, hashable, is_free, kind_of
from pliant.flow.source import Function

_PLAIN = (str, bytes, bool, type(None), type, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
          types.ModuleType, types.BuiltinFunctionType, types.EllipsisType, slice, complex)  # fmt: skip
_ITERATORS: tuple[type, ...] = (type(iter([])), type(iter(())), type(iter({})), type(iter(range(0))), type(iter("")),
                                zip, enumerate, map, filter, reversed, type(reversed([])))  # fmt: skip


class Env(dict[str, Any]):
    """The variables of a frame; what it lacks is looked up in the interpreter's functions, then in the module.

    Args:
        base: the globals of the function.
    """

    def __init__(self, base: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.base = base
        self.twins: list[Env] = []  # those it was copied from; functions defined in them still name them

    FLOW: ClassVar[dict[str, Any]] = {}

    def __missing__(self, key: str) -> Any:
        if key in self.FLOW:
            return self.FLOW[key]
        return self.base[key]


@dataclass
class Held:
    """What a `for` loop still goes through.

    Args:
        rest: the items; a list is looked at live, as Python does.
        at: the next one.
    """

    rest: Any
    at: int = 0


@dataclass
class SymRange:
    """A `range` whose ends are known at run time.

    Args:
        at, stop: run-time or plain integers.
        step: a plain integer.
        sure: whether there is a next number for certain.
        start: where a range over a free length began.
    """

    at: Any
    stop: Any
    step: int
    sure: bool = False
    start: Any = None

    def __iter__(self) -> Any:
        raise Undecided("Python goes through a range that ends at a run-time number", "use a `for` statement", "loop")


@dataclass
class Frame:
    """One function under way.

    Args:
        function: which.
        env: its variables.
        items: what is left to do, the next last.
        target: the caller's variable for what it returns.
    """

    function: Function
    env: Env
    items: list[Item]
    target: str | None = None


@dataclass(frozen=True)
class Slot:
    """A tensor in a pattern."""

    index: int


@dataclass(frozen=True)
class NumberSlot:
    """A number in a pattern."""

    index: int


@dataclass(frozen=True, eq=False)
class Free:
    """A number, a slice or a `torch.Size` with free sizes in it."""

    value: Any


@dataclass(frozen=True)
class Ref:
    """A container that occurred before."""

    index: int


@dataclass(frozen=True)
class Made:
    """A container: how it is made from its parts."""

    index: int
    make: Callable[[], Any]
    fill: Callable[[Any, list[Any]], Any]
    parts: list[Any]


@dataclass
class Pattern:
    """The frames, frozen.

    Attributes:
        key: what must agree.
        tensors: the values of the slots.
        numbers: the values of the number slots, plain or `Sym`.
        labels: where the number slots are: (function, path).
        paths: where the tensors are.
        template: the frames with slots.
        shared: tensor slots that share memory with another one.
    """

    key: tuple[Any, ...]
    tensors: list[Tensor] = field(default_factory=list)
    numbers: list[Any] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    template: list[tuple[Function, Any, list[Item], str | None]] = field(default_factory=list)
    shared: frozenset[int] = frozenset()


class Freezer:
    """Makes patterns of frames.

    Args:
        code: of the statements.
        constant: whether a tensor belongs to the network itself.
        storage: names the memory of a tensor.
    """

    def __init__(self, code: Code, constant: Callable[[Tensor], bool], storage: Callable[[Tensor], Any]) -> None:
        self.live, self.constant, self.storage = Liveness(code), constant, storage

    def freeze(self, frames: Sequence[Frame]) -> Pattern:
        """The pattern of frames; variables that nothing reads any more are left out."""
        walk = _Walk(self.constant)
        wanted = [self._wanted(frames, number) for number in range(len(frames))]
        for frame, names in zip(frames, wanted, strict=True):
            walk.frame(frame, names)
        found = walk.pattern
        owners: dict[Any, list[int]] = {}
        for number, tensor in enumerate(found.tensors):
            owners.setdefault(self.storage(tensor), []).append(number)
        together = [tuple(group) for group in owners.values() if len(group) > 1]
        found.shared = frozenset(number for group in together for number in group)
        found.key = (*walk.tokens, ("shared", tuple(sorted(together))))
        return found

    def _wanted(self, frames: Sequence[Frame], number: int) -> list[str]:
        frame = frames[number]
        names = set(self.live.of(frame.items))
        if number + 1 < len(frames):
            names.discard(frames[number + 1].target or "")
        for other in frames:  # functions defined inside, which are interpreted now
            if other.env.base is frame.env or any(other.env.base is twin for twin in frame.env.twins):
                names |= self.live.of(other.items)
        todo = list(names)
        while todo:  # functions defined inside read variables of their frame when they are called
            for name in _read_by(frame.env.get(todo.pop()), frame.env):
                if name not in names and name in frame.env:
                    names.add(name)
                    todo.append(name)
        return sorted(name for name in names if name in frame.env)


def _read_by(value: Any, env: Env) -> set[str]:
    if isinstance(value, types.FunctionType) and any(value.__globals__ is each for each in (env, *env.twins)):
        return _names(value.__code__)
    return set()


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= _names(inner)
    return found


def _item_token(item: Item) -> tuple[Any, ...]:
    return (item[0], id(item[1]), item[2])


class _Walk:
    def __init__(self, constant: Callable[[Tensor], bool]) -> None:
        self.constant = constant
        self.tokens: list[Any] = []
        self.pattern = Pattern(())
        self.seen: dict[int, int] = {}
        self.slots: dict[int, int] = {}
        self.held: list[Any] = []  # keeps ids from being used twice
        self.function = ""
        self.fixed = 0

    def frame(self, frame: Frame, names: list[str]) -> None:
        self.function = frame.function.name
        self.tokens.append((frame.function.code, frame.target, tuple(_item_token(item) for item in frame.items)))
        index = self._index(frame.env)
        parts = []
        for name in names:
            self.tokens.append(name)
            parts.append(self.value(frame.env[name], name))
        base = self.value(frame.env.base, "") if isinstance(frame.env.base, Env) else frame.env.base

        def make(base: Any = base, names: tuple[str, ...] = tuple(names)) -> Any:
            return Env(base)

        def fill(env: Any, values: list[Any], names: tuple[str, ...] = tuple(names)) -> Any:
            env.update(zip(names, values, strict=True))
            return env

        env = Made(index, make, fill, parts)
        self.pattern.template.append((frame.function, env, list(frame.items), frame.target))

    def _index(self, value: Any) -> int:
        self.held.append(value)
        number = self.seen.setdefault(id(value), len(self.held))
        for twin in value.twins if isinstance(value, Env) else ():
            self.seen.setdefault(id(twin), number)
        return number

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, Sym):
            if value.kind == "bool":
                return self._slot(value, value.tensor, ("symbol", "bool"), path)
            return self._number(value, value.kind, path)
        if isinstance(value, torch.Size | slice) and any(map(is_free, _ends(value))):
            self.tokens.append((type(value).__name__, hashable(_ends(value))))
            return Free(value)
        if isinstance(value, _PLAIN):
            self.tokens.append((type(value).__name__, str(value) if isinstance(value, slice) else value))
            return value
        if is_free(value):
            if self.fixed:
                self.tokens.append((type(value).__name__, str(value)))
                return Free(value)
            return self._number(value, kind_of(value) or "int", path)
        if isinstance(value, int | float) and type(value) in (int, float):
            if self.fixed:
                self.tokens.append((type(value).__name__, repr(value)))
                return value
            return self._number(value, "int" if isinstance(value, int) else "float", path)
        if id(value) in self.seen:
            self.tokens.append(("ref", self.seen[id(value)]))
            return Ref(self.seen[id(value)])
        return self._container(value, path)

    def _tensor(self, value: Tensor, path: str) -> Any:
        if self.constant(value):
            self.held.append(value)
            self.tokens.append(("constant", id(value)))
            return value
        return self._slot(value, value, ("tensor", value.dtype, hashable(value.shape), value.requires_grad), path)

    def _slot(self, value: Any, tensor: Tensor, token: Any, path: str) -> Any:
        known = self.slots.get(id(value))
        if known is None:
            self.held.append(value)
            known = self.slots[id(value)] = len(self.pattern.tensors)
            self.pattern.tensors.append(tensor)
            self.pattern.paths.append(path)
        self.tokens.append((known, token))
        return _Bool(known) if isinstance(value, Sym) else Slot(known)

    def _number(self, value: Any, kind: Kind, path: str) -> NumberSlot:
        pattern = self.pattern
        self.tokens.append(("number", kind))
        pattern.numbers.append(value)
        pattern.labels.append((self.function, path))
        return NumberSlot(len(pattern.numbers) - 1)

    def _container(self, value: Any, path: str) -> Any:
        if isinstance(value, nn.Module):
            return self._same(value)
        if isinstance(value, types.MethodType):
            self.tokens.append(("method", value.__func__))
            owner = self.value(value.__self__, path)
            return Made(-1, list, _bound(value.__func__), [owner])
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        if isinstance(value, (*_ITERATORS, types.GeneratorType)):
            raise Final(f"an iterator ({path or 'a loop'}) is alive across a decision", "make it a list first")
        parts = _parts(value)
        if parts is None:
            return self._same(value)
        keys, items, make, fill = parts
        index = self._index(value)
        self.tokens.append((type(value), len(items), keys))
        loop = isinstance(value, Held)
        self.fixed += loop
        made = [self.value(item, f"{path}{_step(keys, number)}") for number, item in enumerate(items)]
        self.fixed -= loop
        return Made(index, make, fill, made)

    def _same(self, value: Any) -> Any:
        self.held.append(value)
        self.tokens.append(("object", id(value)))
        return value

    def _function(self, value: types.FunctionType, path: str) -> Any:
        if not isinstance(value.__globals__, Env):
            return self._same(value)
        self.tokens.append(("function", value.__code__))
        owner = self.value(value.__globals__, path)
        cells = [self.value(cell.cell_contents, path) for cell in value.__closure__ or ()]

        def fill(_: Any, parts: list[Any]) -> Any:
            closure = tuple(types.CellType(part) for part in parts[1:])
            made = types.FunctionType(value.__code__, parts[0], value.__name__, value.__defaults__, closure or None)
            made.__kwdefaults__ = value.__kwdefaults__
            return made

        return Made(-1, list, fill, [owner, *cells])


@dataclass(frozen=True)
class _Bool:
    """A run-time bool in a pattern."""

    index: int


def _bound(function: Any) -> Callable[[Any, list[Any]], Any]:
    return lambda _, parts: types.MethodType(function, parts[0])


def _step(keys: Any, number: int) -> str:
    return f"[{keys[number]!r}]" if keys else f"[{number}]"


Parts = tuple[Any, list[Any], Callable[[], Any], Callable[[Any, list[Any]], Any]]


def _parts(value: Any) -> Parts | None:
    """Keys and parts of a container, how an empty one is made, and how it is filled; None for anything else."""
    kind: Any = type(value)
    if isinstance(value, Held):
        rest = value.rest if isinstance(value.rest, list | range) else list(value.rest)[value.at :]
        live = isinstance(value.rest, list)
        if isinstance(value.rest, range):
            left = value.rest[value.at :]
            return ("range", left), [], lambda: None, lambda _, __: Held(left)
        if live:
            return ("live", value.at), [rest], lambda: None, lambda _, parts: Held(parts[0], value.at)
        return None_key, list(rest), lambda: None, lambda _, parts: Held(tuple(parts))
    if isinstance(value, tuple):
        named = hasattr(value, "_fields")
        return None_key, list(value), list, lambda _, parts: kind(*parts) if named else kind(parts)
    if isinstance(value, list | deque):
        make = (lambda: deque(maxlen=value.maxlen)) if isinstance(value, deque) else kind
        return None_key, list(value), make, _extended
    if isinstance(value, set | frozenset):
        items = sorted(value, key=repr)
        return None_key, items, set, lambda _, parts: kind(parts)
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, range):
        return ("range", value), [], list, lambda _, __: value
    if isinstance(value, enum.Enum) or callable(value) or kind.__module__.startswith("torch"):
        return None
    if hasattr(value, "__dict__"):
        names = tuple(vars(value))

        def fill(made: Any, parts: list[Any]) -> Any:
            for name, part in zip(names, parts, strict=True):
                object.__setattr__(made, name, part)
            return made

        return names, list(vars(value).values()), lambda: kind.__new__(kind), fill
    return None


None_key: Any = ()


def _extended(made: Any, parts: list[Any]) -> Any:
    made.extend(parts)
    return made


def _mapping(value: dict[Any, Any]) -> Parts:
    kind: Any = type(value)
    keys = tuple(value)
    if isinstance(value, Env):
        raise Final("a function defined in a call that has ended is alive across a decision", "define it at the top")
    if any(isinstance(key, Tensor) for key in keys):
        raise Final("a dict with tensors as keys is alive across a decision", "key it by names or numbers")
    if hasattr(kind, "__dataclass_fields__"):
        return keys, list(value.values()), lambda: None, lambda _, parts: kind(**dict(zip(keys, parts, strict=True)))

    def make() -> Any:
        if isinstance(value, defaultdict):
            return kind(value.default_factory)
        return kind() if kind in (dict, OrderedDict) else kind.__new__(kind)

    def fill(made: Any, parts: list[Any]) -> Any:
        for key, part in zip(keys, parts, strict=True):
            dict.__setitem__(made, key, part) if not isinstance(made, OrderedDict) else made.__setitem__(key, part)
        return made

    return keys, list(value.values()), make, fill


def thaw(
    pattern: Pattern, tensors: Sequence[Any], numbers: Sequence[Any], size: Callable[[Any], Any] = lambda size: size
) -> list[Frame]:
    """New frames of a pattern.

    Args:
        pattern: the pattern.
        tensors: one per slot.
        numbers: one per number slot, plain or `Sym`.
        size: gives a free size its value.
    """
    known: dict[int, Any] = {}

    def build(part: Any) -> Any:
        if isinstance(part, Slot):
            return tensors[part.index]
        if isinstance(part, _Bool):
            return Sym(tensors[part.index], "bool")
        if isinstance(part, NumberSlot):
            return numbers[part.index]
        if isinstance(part, Free):
            kind = type(part.value)
            return kind(*map(size, _ends(part.value))) if kind is slice else _sized(part.value, size)
        if isinstance(part, Ref):
            return known[part.index]
        if not isinstance(part, Made):
            return part
        made = part.make()
        if isinstance(made, Env) and isinstance(made.base, Ref | Made):
            made.base = build(made.base)
        if part.index >= 0:
            known[part.index] = made
        result = part.fill(made, [build(inner) for inner in part.parts])
        if part.index >= 0:
            known[part.index] = result
        return result

    return [Frame(function, build(env), list(items), target) for function, env, items, target in pattern.template]


def _ends(value: Any) -> tuple[Any, ...]:
    return (value.start, value.stop, value.step) if isinstance(value, slice) else tuple(value)


def _sized(value: Any, size: Callable[[Any], Any]) -> Any:
    return torch.Size(list(map(size, value))) if isinstance(value, torch.Size) else size(value)


def reordered(pattern: Pattern, tensors: Sequence[Tensor]) -> None:
    """Give a pattern these slots in this order, in place; they hold its own tensors and may hold more.

    Args:
        pattern: the pattern.
        tensors: the slots wanted.
    """
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    new = [places[id(tensor)] for tensor in pattern.tensors]

    def moved(part: Any) -> Any:
        if isinstance(part, Slot):
            return Slot(new[part.index])
        if isinstance(part, Made):
            part.parts[:] = [moved(inner) for inner in part.parts]
        return part

    for _, env, _, _ in pattern.template:
        moved(env)
    paths = dict(zip(new, pattern.paths, strict=True))
    pattern.paths = [paths.get(place, "an input") for place in range(len(tensors))]
    pattern.shared = frozenset(new[number] for number in pattern.shared)
    pattern.tensors = list(tensors)
