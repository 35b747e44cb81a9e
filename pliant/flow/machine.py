"""The interpreter: statements are run by Python itself, decisions on tensors end a block.

Only what decides is interpreted: `if`, `while`, `for`, `return`, `break`, `continue`, and calls whose code hides a
decision. Everything else runs natively, so a network may use whatever Python offers between two decisions.
"""

import ast
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core._torch_private import value_errors
from pliant.flow.builtins import QUIET_CONTEXTS
from pliant.flow.errors import Final, Leak, Place, Rejected, Stop, Undecided
from pliant.flow.live import Code, Item
from pliant.flow.lower import Choose, Comprehension, Inline, located, lower
from pliant.flow.reader import truth
from pliant.flow.scalar import Sym, kind_of, tensor_of
from pliant.flow.source import function_of
from pliant.flow.values import Env, Frame, Held, SymRange

_DEPTH = 60
_TURNS = 4
"""Turns of a loop over a free length that may differ from each other in what they hold."""
_QUIET_ERRORS = (IndexError, KeyError, StopIteration, ZeroDivisionError)
"""What the user's code may raise on a way that no input takes."""


@dataclass(frozen=True)
class Side:
    """One side of a decision.

    Args:
        items: what is left to do in the last frame.
        changes: variables of the last frame that get values.
        known: what the decided value is on this side.
    """

    items: list[Item]
    changes: dict[str, Any]
    known: bool | int


@dataclass
class Decision:
    """A block ended where a tensor decides.

    Args:
        value: 0-d bool (`if`) or int64 (a choice).
        sides: what follows: [true, false], or one per element.
        place: of the decision.
        frames: at the decision.
        decided: what the code decided on.
        keys: the integers that lead to the sides of a choice; None for an `if`.
    """

    value: Tensor
    sides: list[Side]
    place: Place
    frames: list[Frame]
    decided: Any
    keys: list[int] | None = None

    def fork(self, number: int) -> list[Frame]:
        """Frames of their own for one side."""
        frames = []
        for frame in self.frames:
            env = Env(frame.env.base, self._known(frame.env, number))
            env.twins = [*frame.env.twins, frame.env]
            frames.append(Frame(frame.function, env, list(frame.items), frame.target))
        return self._entered(frames, number)

    def go(self, number: int) -> list[Frame]:
        """The frames themselves, on one side; there is no other one any more."""
        for frame in self.frames:
            frame.env.update(self._known(frame.env, number))
        return self._entered(self.frames, number)

    def _known(self, env: Env, number: int) -> dict[str, Any]:
        """Variables, with a plain value for the number that was decided on."""
        known, decided = self.sides[number].known, self.decided
        swap = isinstance(decided, Sym) and (decided.kind == "bool") == isinstance(known, bool)
        return {name: known if swap and value is decided else value for name, value in env.items()}

    def _entered(self, frames: list[Frame], number: int) -> list[Frame]:
        frames[-1].items = list(self.sides[number].items)
        frames[-1].env.update(self.sides[number].changes)
        return frames


@dataclass
class Returned:
    """The network is done."""

    value: Any
    place: Place


@dataclass
class Raised:
    """The network's code raised an error."""

    kind: str
    message: str
    place: Place


Outcome = Decision | Returned | Raised


class Restart(BaseException):
    """A statement was taken apart: the block is to be run again."""


class Pin(BaseException):
    """Counters that must stay plain numbers.

    Args:
        origins: which.
        refusal: if they already are.
    """

    def __init__(self, origins: frozenset[Any], refusal: Rejected) -> None:
        self.origins, self.refusal = origins, refusal


class Machine:
    """Runs frames to the next decision.

    Args:
        code: what is known about statements; shared by all machines of a network.
        symbolic: whether a value's truth is known at run time alone.
        check: refuses what the statement before changed.
        first: whether errors of the user's code are the network's own (nothing was decided before).
    """

    def __init__(
        self, code: Code, symbolic: Callable[[Any], bool], check: Callable[[], None], *, first: bool = False
    ) -> None:
        self.code, self.symbolic, self.check, self.first = code, symbolic, check, first
        self.frames: list[Frame] = []
        self.line = 0
        self.outcome: Outcome | None = None

    @property
    def place(self) -> Place:
        """Where the interpreter is."""
        return Place(self.frames[-1].function.code.co_filename if self.frames else "", self.line)

    def run(self, frames: list[Frame]) -> Outcome:
        """Run to the next decision, or to the end.

        Raises:
            Rejected: something that a program cannot hold.
            Restart: a statement was taken apart; run the block again from new frames.
            Pin: a run-time counter must be a plain number.
        """
        self.frames, self.outcome = frames, None
        self.line = frames[-1].function.node.lineno
        try:
            return self._ended()
        except Stop as stop:
            raise self._rejected(stop) from None

    def _ended(self) -> Outcome:
        while True:
            self._step(self.frames[-1])
            outcome: Outcome | None = self.outcome
            if outcome is not None:
                return outcome

    def _rejected(self, stop: Stop) -> BaseException:
        if isinstance(stop, Leak) and stop.origins:
            return Pin(stop.origins, Rejected(stop.reason, self.place, stop.fix))
        return Rejected(stop.reason, self.place, stop.fix)

    # -- the work list -------------------------------------------------------------------------------------------------

    def _step(self, frame: Frame) -> None:
        if not frame.items:
            self._finish(None)
            return
        kind, node, place = frame.items.pop()
        if kind == "seq":
            if place + 1 < len(node):
                frame.items.append((kind, node, place + 1))
            self._statement(node[place], frame)
        elif kind == "loop":
            self._loop(node, frame)
        elif kind == "branch":
            self._branch(node, frame)
        elif kind == "start":
            self._start(node, frame)
        else:
            self._finish(frame.env.pop(self.code.temp(node)))

    def _then(self, frame: Frame, statements: list[ast.stmt]) -> None:
        if statements:
            frame.items.append(("seq", statements, 0))

    def _finish(self, value: Any) -> None:
        frame = self.frames[-1]
        if len(self.frames) == 1:
            self.outcome = Returned(value, self.place)
            return
        self.frames.pop()
        assert frame.target is not None  # every frame but the first has one
        self.frames[-1].env[frame.target] = value

    def _statement(self, node: ast.stmt, frame: Frame) -> None:
        self.line = getattr(node, "lineno", self.line)
        if id(node) in self.code.replaced:
            self._then(frame, self.code.replaced[id(node)])
            return
        handler = getattr(self, f"_do_{type(node).__name__}", None)
        if handler is not None:
            handler(node, frame)
        else:
            self._native(node, frame)

    def _do_If(self, node: ast.If, frame: Frame) -> None:
        frame.items.append(("branch", node, 0))
        self._then(frame, self.code.evaluated(node, node.test))

    def _do_While(self, node: ast.While, frame: Frame) -> None:
        frame.items.append(("loop", node, 0))

    def _do_For(self, node: ast.For, frame: Frame) -> None:
        frame.items.append(("start", node, 0))
        self._then(frame, self.code.evaluated(node, node.iter))

    def _do_Return(self, node: ast.Return, frame: Frame) -> None:
        frame.items = [("return", node, 0)]
        value = node.value if node.value is not None else located(ast.Constant(None), node)
        self._then(frame, self.code.evaluated(node, value))

    def _do_Pass(self, node: ast.Pass, frame: Frame) -> None:
        pass

    def _do_Break(self, node: ast.Break, frame: Frame) -> None:
        while frame.items.pop()[0] != "loop":
            pass

    def _do_Continue(self, node: ast.Continue, frame: Frame) -> None:
        while frame.items[-1][0] != "loop":
            frame.items.pop()

    def _do_Assert(self, node: ast.Assert, frame: Frame) -> None:
        arguments = [node.msg] if node.msg is not None else []
        error = located(ast.Raise(ast.Call(ast.Name("AssertionError", ast.Load()), arguments, []), None), node)
        test = located(ast.If(node.test, [located(ast.Pass(), node)], [error]), node)
        self.code.replace(node, [test])
        self._then(frame, [test])

    def _do_Raise(self, node: ast.Raise, frame: Frame) -> None:
        if node.exc is None:
            raise Final("an error is raised again", "raise an error of a named kind")
        name = self.code.temp(node)
        self._native(self.code.evaluated(node, node.exc)[0], frame)
        error = frame.env.pop(name)
        error = error() if isinstance(error, type) else error
        if self.first:
            raise error
        self.outcome = Raised(type(error).__name__, str(error), self.place)

    def _do_Global(self, node: ast.Global, frame: Frame) -> None:
        raise Final("a global variable is set: a side effect", "return the value instead")

    def _do_Nonlocal(self, node: ast.Nonlocal, frame: Frame) -> None:
        raise Final("a variable of an outer function is set", "return the value instead")

    def _do_With(self, node: ast.With, frame: Frame) -> None:
        for item in node.items:
            self._native(self.code.evaluated(item, item.context_expr)[0], frame)
            context = frame.env.pop(self.code.temp(item))
            if not isinstance(context, QUIET_CONTEXTS):
                self._whole(node, frame)
                return
        self._then(frame, node.body)

    def _do_Try(self, node: ast.Try, frame: Frame) -> None:
        self._whole(node, frame)

    def _do_Match(self, node: ast.Match, frame: Frame) -> None:
        self._whole(node, frame)

    def _whole(self, node: ast.stmt, frame: Frame) -> None:
        """A statement that runs natively or not at all."""
        kind = type(node).__name__.lower()
        if any(isinstance(each, ast.Return | ast.Break | ast.Continue) for each in ast.walk(node)):
            raise Final(f"a `{kind}` is left by return, break or continue", f"leave it before or after the `{kind}`")
        try:
            self._execute(node, frame)
        except Undecided as stop:
            raise Final(f"a tensor decides inside a `{kind}`", f"decide before or after the `{kind}`") from stop

    # -- loops and branches --------------------------------------------------------------------------------------------

    def _start(self, node: ast.For, frame: Frame) -> None:
        name = self.code.temp(node)
        value = frame.env[name]
        if not isinstance(value, SymRange | Held):
            if isinstance(value, Tensor):
                value = list(value)
            if isinstance(value, types.GeneratorType) or not isinstance(value, list | tuple | range):
                value = self._materialised(value, node)
            frame.env[name] = Held(value)
        frame.items.append(("loop", node, 0))

    @staticmethod
    def _materialised(value: Any, node: ast.For) -> Any:
        if type(value).__module__ == "itertools" and type(value).__name__ in ("count", "cycle", "repeat"):
            if type(value).__name__ == "count":
                return range(next(value), 1 << 60)
            raise Final("an endless iterator", "use while True")
        try:
            return tuple(value)
        except Undecided as stop:
            name = getattr(getattr(value, "gi_code", None), "co_qualname", type(value).__name__)
            raise Final(
                f"{name} is a generator that decides on a tensor", "write it as a loop, or return a list"
            ) from stop

    def _loop(self, node: Any, frame: Frame) -> None:
        self.line = node.lineno
        if isinstance(node, ast.While):
            frame.items += [("loop", node, 0), ("branch", node, 0)]
            self._then(frame, self.code.evaluated(node, node.test))
            return
        name = self.code.temp(node)
        held = frame.env[name]
        if isinstance(held, SymRange):
            self._ranged(node, held, frame)
            return
        if held.at >= len(held.rest):
            del frame.env[name]
            self._then(frame, node.orelse)
            return
        value = held.rest[held.at]
        frame.env[name] = Held(held.rest, held.at + 1)
        self._take(node, value, frame)

    def _take(self, node: ast.For, value: Any, frame: Frame) -> None:
        frame.items += [("loop", node, 0), ("seq", node.body, 0)]
        if isinstance(node.target, ast.Name):
            frame.env[node.target.id] = value
            return
        frame.env[self.code.temp(node.target)] = value
        self._execute(self.code.unpacked(node), frame)
        del frame.env[self.code.temp(node.target)]

    def _ranged(self, node: ast.For, held: SymRange, frame: Frame) -> None:
        more = held.sure or (held.at < held.stop if held.step > 0 else held.at > held.stop)
        name = self.code.temp(node)
        if not isinstance(more, Sym):
            if more:
                frame.env[name] = SymRange(held.at + held.step, held.stop, held.step, start=held.start)
                self._take(node, held.at, frame)
            else:
                del frame.env[name]
                self._then(frame, node.orelse)
            return
        if not isinstance(node.target, ast.Name):
            raise Final("a range is unpacked", "take one number")
        if kind_of(held.start) and not isinstance(held.at, Sym) and held.at - held.start >= _TURNS * held.step:
            raise Final("a loop over a free length keeps what grows with it", "keep it in a tensor of a fixed size")
        after = SymRange(held.at + held.step, held.stop, held.step, start=held.start)
        yes: list[Item] = [*frame.items, ("loop", node, 0), ("seq", node.body, 0)]
        no: list[Item] = [*frame.items, *([("seq", node.orelse, 0)] if node.orelse else [])]
        self._decide(more, [(yes, {name: after, node.target.id: held.at}), (no, {})])

    def _branch(self, node: Any, frame: Frame) -> None:
        self.line = node.lineno
        value = frame.env.pop(self.code.temp(node))
        below = frame.items[:-1] if isinstance(node, ast.While) else frame.items
        yes: list[Item] = [*frame.items, *([("seq", node.body, 0)] if node.body else [])]
        no: list[Item] = [*below, *([("seq", node.orelse, 0)] if node.orelse else [])]
        if self.symbolic(value):
            self._decide(value, [(yes, {}), (no, {})])
        else:
            frame.items = yes if bool(value) else no

    def _decide(self, value: Any, cases: list[tuple[list[Item], dict[str, Any]]]) -> None:
        sides = [Side(items, changes, known) for (items, changes), known in zip(cases, (True, False), strict=True)]
        self.outcome = Decision(truth(value), sides, self.place, self.frames, value)

    def _do_Choose(self, node: Choose, frame: Frame) -> None:
        container, index = frame.env.pop(node.packed.id)
        if isinstance(container, Mapping):
            keys = list(container)
            if not keys or any(type(key) is not int for key in keys):
                raise Final("a dict is read with a tensor as its key", "use a list, or integer keys")
            elements = list(container.values())
        else:
            elements = list(container)
            keys = list(range(len(elements)))
        if not elements:
            raise Final("an empty container is indexed by a tensor", "fill it in __init__")
        tensor = tensor_of(index, "int") if isinstance(index, Sym) else index.reshape(1).to(torch.int64)
        if not isinstance(container, Mapping):
            tensor = torch.where(tensor < 0, tensor + len(elements), tensor)
        sides = [
            Side(list(frame.items), {node.target.id: element}, key) for key, element in zip(keys, elements, strict=True)
        ]
        self.outcome = Decision(tensor.reshape(()), sides, self.place, self.frames, index, keys)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _do_Inline(self, node: Inline, frame: Frame) -> None:
        function, args, kwargs = frame.env.pop(node.packed.id)
        self.enter(function, args, kwargs, node.target.id, getattr(node, "why", None))

    def enter(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        target: str | None,
        why: Stop | None = None,
    ) -> Frame:
        """A frame more, for a call that is interpreted; `why` is the refusal if it cannot be."""
        function, args = self._resolved(function, args, why)
        tree = function_of(function.__code__)
        if sum(each.function is tree for each in self.frames) > 20 or len(self.frames) > _DEPTH:
            raise Final(f"{tree.name} calls itself again and again", "write the recursion as a loop")
        try:
            bound = inspect.Signature.from_callable(function, follow_wrapped=False).bind(*args, **kwargs)
        except TypeError as error:
            raise Final(f"{tree.name} is called with other arguments ({error})", "call it as it is defined") from error
        bound.apply_defaults()
        env = Env(function.__globals__, bound.arguments)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            env[name] = cell.cell_contents
        frame = Frame(tree, env, [("seq", tree.body, 0)], target)
        self.frames.append(frame)
        return frame

    def _resolved(
        self, function: Any, args: tuple[Any, ...], why: Stop | None
    ) -> tuple[types.FunctionType, tuple[Any, ...]]:
        for _ in range(20):
            if isinstance(function, nn.Module):
                if function._forward_hooks or function._forward_pre_hooks:
                    raise Final(f"{type(function).__name__} decides on a tensor and has hooks", "remove its hooks")
                function = function.forward
            elif isinstance(function, types.MethodType):
                function, args = function.__func__, (function.__self__, *args)
                if getattr(function, "__qualname__", "") in ("Module._wrapped_call_impl", "Module._call_impl"):
                    function, args = args[0], args[1:]
            elif isinstance(function, types.FunctionType):
                if function.__qualname__ == "checkpoint" and function.__module__ == "torch.utils.checkpoint":
                    function, args = args[0], args[1:]
                    continue
                return function, args
            elif not isinstance(function, type) and _python(function):
                function, args = type(function).__call__, (function, *args)
            else:
                break
        if why is not None:
            raise Final(why.reason, why.fix)
        name = getattr(function, "__qualname__", type(function).__name__)
        raise Final(
            f"{name} needs the value of a tensor", "decide with `if` in the network's own code, or use torch.where"
        )

    # -- native statements ---------------------------------------------------------------------------------------------

    def _native(self, node: ast.stmt, frame: Frame) -> None:
        walrus = None if self.code.ran(node) else _walrus(node)
        if walrus is not None:
            self.code.replace(node, lower(node, walrus))
            raise Restart
        try:
            self._execute(node, frame)
        except Stop as stop:
            final = isinstance(stop, Final) or (isinstance(stop, Leak) and bool(stop.origins))
            culprit = None if final else _culprit(node, stop, frame.env)
            if culprit is None or _packs(node, culprit):
                raise
            try:
                parts = lower(node, culprit)
            except Final:
                raise stop from None
            for part in parts:
                if isinstance(part, Inline):
                    part.why = stop.with_traceback(None)
            self.code.replace(node, parts)
            raise Restart from None

    def _execute(self, node: ast.stmt, frame: Frame) -> None:
        try:
            exec(self.code.compiled(node, frame.function), frame.env)  # the user's own statement
        except value_errors() as error:
            name = str(getattr(error, "func", error))
            raise Final(f"the shape or a number here follows from the values of a tensor ({name})",
                        "use masks and torch.where, or take a fixed number (topk)") from None  # fmt: skip
        except Rejected:
            raise
        except _QUIET_ERRORS as error:
            if self.first:
                raise
            self.outcome = Raised(type(error).__name__, str(error), self.place)
        except Exception as error:
            if self.first:
                raise
            text = str(error).strip().splitlines()
            raise Final(f"it fails on a way that a decision opens: {type(error).__name__}: {text[0] if text else ''}",
                        "make both sides of the decision run") from error  # fmt: skip
        self.check()


def _python(value: Any) -> bool:
    return isinstance(getattr(type(value), "__call__", None), types.FunctionType)  # noqa: B004


def _walrus(node: ast.stmt) -> ast.expr | None:
    """An assignment inside an expression, outside of comprehensions."""
    todo: list[ast.AST] = [node] if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Try | ast.With) else []
    while todo:
        each = todo.pop()
        if isinstance(each, ast.NamedExpr):
            return each
        if not isinstance(each, Comprehension | ast.Lambda):
            todo += list(ast.iter_child_nodes(each))
    return None


def _packs(node: ast.stmt, culprit: ast.expr) -> bool:
    return isinstance(culprit, ast.Call) and isinstance(culprit.func, ast.Name) and culprit.func.id == "__flow_pack__"


_KINDS: dict[str, Any] = {"if": ast.IfExp, "choice": ast.Subscript, "loop": Comprehension, "join": ast.BoolOp,
                          "call": ast.Call}  # fmt: skip


def _culprit(statement: ast.stmt, stop: Stop, env: Env) -> ast.expr | None:
    """The expression of a statement that has to be done before, from where the run was stopped."""
    places = []
    trace = stop.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals is env:
            positions = list(trace.tb_frame.f_code.co_positions())
            places.append(positions[trace.tb_lasti // 2])
        trace = trace.tb_next
    kind = _KINDS[stop.kind] if isinstance(stop, Undecided) else ast.Call
    nodes = [node for node in ast.walk(statement) if isinstance(node, ast.expr)]
    for place in reversed(places):
        for wanted in (kind, ast.Call, Comprehension):
            found = _at(nodes, place, wanted)
            if found is not None:
                return found
    return None


def _at(nodes: list[ast.expr], place: Any, kind: Any) -> ast.expr | None:
    line, last, column, end = place
    same = [n for n in nodes if isinstance(n, kind) and (n.end_lineno, n.end_col_offset) == (last, end)]
    exact = [n for n in same if (n.lineno, n.col_offset) == (line, column)]
    if exact or kind is not Comprehension:
        found: ast.expr | None = next(iter([*exact, *same]), None)
        return found
    around = [n for n in nodes if isinstance(n, kind) and _inside(place, n)]
    return around[-1] if around else None


def _inside(place: Any, node: ast.expr) -> bool:
    line, last, column, end = place
    first, final = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return first <= (line, column) and (last, end) <= final
