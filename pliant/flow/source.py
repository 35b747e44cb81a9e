"""The user's functions as syntax trees, and their statements as code that keeps run-time numbers alive."""

import ast
import builtins
import copy
import linecache
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pliant.flow.errors import Final, Place

FunctionNode = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True, eq=False)
class Function:
    """A function's syntax tree.

    Args:
        code: its code object.
        node: its definition.
        body: its statements.
    """

    code: types.CodeType
    node: FunctionNode
    body: list[ast.stmt]

    @property
    def name(self) -> str:
        """Its qualified name."""
        return self.code.co_qualname

    @property
    def place(self) -> Place:
        """Where it is defined."""
        return Place(self.code.co_filename, self.node.lineno)


@cache
def function_of(code: types.CodeType) -> Function:
    """The tree behind a code object.

    Raises:
        Final: its source cannot be read, or it is no plain function.
    """
    if code.co_flags & (0x20 | 0x80 | 0x200):  # generator, coroutine, asynchronous generator
        raise Final(
            f"{code.co_qualname} is a generator that decides on a tensor", "write it as a loop, or return a list"
        )
    candidates = [node for node in _definitions(code.co_filename) if _begins(node) == code.co_firstlineno]
    named = [node for node in candidates if getattr(node, "name", "<lambda>") == code.co_name]
    if len(named) > 1 and code.co_name == "<lambda>":
        columns = {place[2] for place in code.co_positions() if place[2] is not None}
        named = [node for node in named if any(node.body.col_offset == column for column in columns)]  # type: ignore[attr-defined]
    if len(named) != 1 or not isinstance(named[0], FunctionNode):
        raise Final(f"the source of {code.co_qualname} cannot be read", "define it in a file, one function on a line")
    node = named[0]
    if isinstance(node, ast.Lambda):
        return Function(code, node, [ast.copy_location(ast.Return(node.body), node.body)])
    return Function(code, node, node.body)


@cache
def _definitions(file: str) -> list[ast.AST]:
    text = "".join(linecache.getlines(file))
    try:
        tree = ast.parse(text, filename=file)
    except (SyntaxError, ValueError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]


def _begins(node: Any) -> int:
    decorators = getattr(node, "decorator_list", [])
    return int(decorators[0].lineno if decorators else node.lineno)


def names_in(node: ast.AST) -> set[str]:
    """Every variable that is read anywhere in a piece of code."""
    return {
        found.id for found in ast.walk(node) if isinstance(found, ast.Name) and not isinstance(found.ctx, ast.Store)
    }


def bound_in(node: ast.AST) -> set[str]:
    """The variables that a piece of code binds, outside of comprehensions and inner functions."""
    found: set[str] = set()
    todo = [node]
    while todo:
        each = todo.pop()
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            found.add(each.name)
        elif isinstance(each, ast.Name):
            if isinstance(each.ctx, ast.Store):
                found.add(each.id)
        elif isinstance(each, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in each.names}
        elif not isinstance(each, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
            todo += list(ast.iter_child_nodes(each))
    return found


# -- rewriting --------------------------------------------------------------------------------------------------------


def called(name: str, arguments: list[ast.expr], at: ast.expr) -> ast.Call:
    """A call of one of the interpreter's own functions, at the place of another expression."""
    made = ast.Call(ast.Name(name, ast.Load()), arguments, [])
    return ast.fix_missing_locations(ast.copy_location(made, at))


def _lambda(body: ast.expr) -> ast.expr:
    empty = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.fix_missing_locations(ast.copy_location(ast.Lambda(empty, body), body))


class _Rewriter(ast.NodeTransformer):
    """Expressions in which Python would ask a tensor for its value go through the functions of `machine`."""

    def __init__(self, function: Function) -> None:
        self.function = function
        owner = function.name.rpartition(".")[0].rpartition(".")[2]
        self.mangle = f"_{owner.lstrip('_')}" if owner and owner != "<locals>" else ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node

    visit_ClassDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "super" and not node.args and isinstance(self.function.node, ast.FunctionDef):
            me = self.function.code.co_varnames[0]
            arguments: list[ast.expr] = [ast.Name("__class__", ast.Load()), ast.Name(me, ast.Load())]
            return ast.fix_missing_locations(ast.copy_location(ast.Call(node.func, arguments, []), node))
        self.generic_visit(node)
        if name.startswith("__flow_"):
            return node
        made = ast.Call(ast.Name("__flow_call__", ast.Load()), [node.func, *node.args], node.keywords)
        return ast.fix_missing_locations(ast.copy_location(made, node))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        kind: ast.expr = ast.Constant(isinstance(node.op, ast.And))
        return called("__flow_bool__", [kind, *map(_lambda, node.values)], node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        return called("__flow_not__", [node.operand], node) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> Any:
        self.generic_visit(node)
        names = [type(op).__name__ for op in node.ops]
        if len(names) == 1 and names[0] not in ("In", "NotIn"):
            return node
        signs: list[ast.expr] = [ast.Constant(name) for name in names]
        return called("__flow_compare__", [ast.Tuple(signs, ast.Load()), node.left, *node.comparators], node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        self.generic_visit(node)
        return called("__flow_if__", [node.test, _lambda(node.body), _lambda(node.orelse)], node)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        plain = isinstance(node.slice, ast.Constant | ast.Slice | ast.Tuple | ast.UnaryOp)
        if plain or not isinstance(node.ctx, ast.Load):
            return node
        return called("__flow_sub__", [node.value, node.slice], node)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        if self.mangle and node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = self.mangle + node.attr
        if node.attr == "training" and isinstance(node.ctx, ast.Load):
            return called("__flow_training__", [node.value], node)
        return node

    def visit_ListComp(self, node: Any) -> Any:
        self.generic_visit(node)
        for part in node.generators:
            part.ifs = [called("__flow_truth__", [test], test) for test in part.ifs]
        return node

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def compiled(statement: ast.stmt, function: Function) -> types.CodeType:
    """A statement of a function as code to be run in a frame's variables."""
    rewritten = _Rewriter(function).visit(copy.deepcopy(statement))
    module = ast.fix_missing_locations(ast.Module([rewritten], []))
    return compile(module, function.code.co_filename, "exec", dont_inherit=True)


def pure(node: ast.expr) -> bool:
    """Whether an expression can be evaluated later just as well."""
    if isinstance(node, ast.Attribute):
        return pure(node.value)
    return isinstance(node, ast.Name | ast.Constant | ast.Lambda) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    )


def expressions(nodes: Iterable[ast.AST]) -> set[int]:
    """The identities of all nodes below some."""
    return {id(node) for top in nodes for node in ast.walk(top)}


BUILTINS = vars(builtins)
