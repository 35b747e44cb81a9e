"""Which variables the rest of a function still reads."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from types import CodeType
from typing import Any

from pliant.flow.lower import Choose, Inline, assign, located
from pliant.flow.source import Function, bound_in, compiled, names_in

Names = frozenset[str]
Item = tuple[str, Any, int]
"""A piece of what is left to do in a frame: ("seq", statements, next one), ("loop" | "branch" | "start" | "return",
statement, 0)."""
NOTHING: Names = frozenset()


@dataclass
class Code:
    """What is known about the statements of all functions met so far.

    Attributes:
        replaced: statement to the statements it was taken apart into.
    """

    replaced: dict[int, list[ast.stmt]] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)
    _compiled: dict[int, CodeType] = field(default_factory=dict)
    _parts: dict[tuple[int, str], list[ast.stmt]] = field(default_factory=dict)
    _temps: dict[int, str] = field(default_factory=dict)
    _uses: dict[int, Names] = field(default_factory=dict)
    _serial: Any = field(default_factory=count)

    def compiled(self, statement: ast.stmt, function: Function) -> CodeType:
        """A statement, ready to be run."""
        if id(statement) not in self._compiled:
            self._kept.append(statement)
            self._compiled[id(statement)] = compiled(statement, function)
        return self._compiled[id(statement)]

    def ran(self, statement: ast.stmt) -> bool:
        """Whether a statement was compiled already."""
        return id(statement) in self._compiled

    def temp(self, node: ast.AST) -> str:
        """The variable that holds a loop's iterator, or a test's result."""
        if id(node) not in self._temps:
            self._kept.append(node)
            self._temps[id(node)] = f"__flow_held_{next(self._serial)}"
        return self._temps[id(node)]

    def evaluated(self, node: ast.AST, expression: ast.expr) -> list[ast.stmt]:
        """The statement that puts an expression of `node` into its variable."""
        key = (id(node), "value")
        if key not in self._parts:
            self._parts[key] = [assign(self.temp(node), expression)]
        return self._parts[key]

    def unpacked(self, node: ast.For) -> ast.stmt:
        """The statement that gives a loop's variables their values, from the variable of its target."""
        key = (id(node), "target")
        if key not in self._parts:
            value = located(ast.Name(self.temp(node.target), ast.Load()), node.target)
            self._parts[key] = [located(ast.Assign([node.target], value), node.target)]
        return self._parts[key][0]

    def replace(self, statement: ast.stmt, by: list[ast.stmt]) -> None:
        """Remember what a statement was taken apart into."""
        self._kept.append(statement)
        self.replaced[id(statement)] = by

    def uses(self, node: ast.AST) -> Names:
        """The variables an expression or statement reads."""
        if id(node) not in self._uses:
            self._kept.append(node)
            self._uses[id(node)] = frozenset(names_in(node))
        return self._uses[id(node)]


@dataclass(frozen=True)
class _Exits:
    """What is live where `break` and `continue` lead."""

    leave: Names = NOTHING
    again: Names = NOTHING


class Liveness:
    """Backward analysis over what is left to do.

    Args:
        code: of the statements.
    """

    def __init__(self, code: Code) -> None:
        self.code = code

    def of(self, items: Sequence[Item]) -> Names:
        """The variables read by the items, of which the last is done first."""
        live, exits = NOTHING, [_Exits()]
        for kind, node, place in items:
            if kind == "loop":
                head = self._head(node, live)
                exits.append(_Exits(live, head))
                live = head
            elif kind == "seq":
                live = self._sequence(node[place:], live, exits[-1])
            elif kind == "branch":
                live = self._branch(node, live, exits[-1])
            elif kind == "start":
                live = (self._head(node, live) - {self.code.temp(node)}) | {self.code.temp(node)}
            else:
                live = frozenset({self.code.temp(node)})
        return live

    def _branch(self, node: Any, live: Names, exits: _Exits) -> Names:
        after = exits.leave if isinstance(node, ast.While) else live
        held = {self.code.temp(node)}
        return self._sequence(node.body, live, exits) | self._sequence(node.orelse, after, exits) | held

    def _sequence(self, statements: Sequence[ast.stmt], live: Names, exits: _Exits) -> Names:
        for statement in reversed(statements):
            live = self._statement(statement, live, exits)
        return live

    def _head(self, node: Any, after: Names) -> Names:
        """What is live before a loop's test, or before its next item is taken."""
        otherwise = self._sequence(node.orelse, after, _Exits())
        head = otherwise
        for _ in range(3):  # names only flow around; two rounds settle them
            body = self._sequence(node.body, head, _Exits(after, head))
            if isinstance(node, ast.While):
                head = head | body | self.code.uses(node.test)
            else:
                head = head | (body - bound_in(node.target)) | self.code.uses(node.target) | {self.code.temp(node)}
        return head

    def _statement(self, node: ast.stmt, live: Names, exits: _Exits) -> Names:
        code = self.code
        if id(node) in code.replaced:
            return self._sequence(code.replaced[id(node)], live, exits)
        if isinstance(node, ast.If):
            both = self._sequence(node.body, live, exits) | self._sequence(node.orelse, live, exits)
            return both | code.uses(node.test)
        if isinstance(node, ast.While):
            return self._head(node, live)
        if isinstance(node, ast.For):
            return (self._head(node, live) - {code.temp(node)}) | code.uses(node.iter)
        if isinstance(node, ast.With):
            inner = self._sequence(node.body, live, exits)
            return inner.union(*(code.uses(item.context_expr) for item in node.items))
        if isinstance(node, ast.Return | ast.Raise):
            return code.uses(node)
        if isinstance(node, ast.Break):
            return exits.leave
        if isinstance(node, ast.Continue):
            return exits.again
        if isinstance(node, Inline | Choose):
            return (live - {node.target.id}) | {node.packed.id}
        if isinstance(node, ast.Try | ast.Match):
            return live | code.uses(node)
        if isinstance(node, ast.AugAssign):
            held = {node.target.id} if isinstance(node.target, ast.Name) else set()
            return live | code.uses(node) | held
        return (live - bound_in(node)) | code.uses(node)
