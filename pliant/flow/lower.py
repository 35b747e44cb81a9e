"""Taking a statement apart: one expression in it becomes statements of its own, the order of evaluation is kept."""

import ast
import copy
from collections.abc import Iterator
from itertools import count
from typing import Any

from pliant.flow.errors import Final, Stop
from pliant.flow.source import called, pure

_serial = count()

Comprehension = ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp


class Inline(ast.stmt):
    """`target = call`, whose function is interpreted. `packed` holds (function, arguments, keywords)."""

    _fields = ("target", "packed")
    target: ast.Name
    packed: ast.Name
    why: Stop


class Choose(ast.stmt):
    """`target = container[index]` with an index that is known at run time. `packed` holds (container, index)."""

    _fields = ("target", "packed")
    target: ast.Name
    packed: ast.Name


def fresh(hint: str) -> str:
    """A variable that no user has."""
    return f"__flow_{hint}_{next(_serial)}"


def located(node: Any, at: ast.AST) -> Any:
    """A new node at the place of another."""
    return ast.fix_missing_locations(ast.copy_location(node, at))


def assign(name: str, value: ast.expr) -> ast.stmt:
    """`name = value`."""
    made: ast.stmt = located(ast.Assign([ast.Name(name, ast.Store())], value), value)
    return made


def load(name: str, at: ast.AST) -> ast.Name:
    """A variable, read."""
    made: ast.Name = located(ast.Name(name, ast.Load()), at)
    return made


def lower(statement: ast.stmt, node: ast.expr) -> list[ast.stmt]:
    """Statements that do what one does, with one of its expressions done before by statements of its own.

    Raises:
        Final: the expression lies where it cannot be taken out (a lambda, the target of an assignment).
    """
    for holder, field, place in _slots(statement):
        value = getattr(holder, field) if place is None else getattr(holder, field)[place]
        if _contains(value, node):
            before, inner = _extract(value, node)
            return [*before, _with(statement, holder, field, place, inner)]
    raise Final("a tensor decides in a place that cannot be taken apart", "give this decision an `if` of its own")


def _contains(tree: ast.AST, node: ast.AST) -> bool:
    return any(each is node for each in ast.walk(tree))


def _slots(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Places of the direct sub-expressions of a node, in the order of evaluation."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        yield node, "value", None
        return
    fields = ("keys", "values") if isinstance(node, ast.Dict) else node._fields
    if isinstance(node, ast.Dict):
        for number in range(len(node.values)):
            for field in fields:
                if getattr(node, field)[number] is not None:
                    yield node, field, number
        return
    for field in fields:
        value = getattr(node, field, None)
        items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for place, item in items:
            if isinstance(item, ast.Starred | ast.keyword | ast.FormattedValue | ast.Slice):
                yield from _slots(item)
            elif isinstance(item, ast.expr):
                yield node, field, place


def _with(node: Any, holder: ast.AST, field: str, place: int | None, value: ast.expr) -> Any:
    """A copy of a node with another sub-expression; `holder` is the node or one of its wrappers."""
    if node is holder:
        made = copy.copy(node)
        if place is None:
            setattr(made, field, value)
        else:
            items = list(getattr(node, field))
            items[place] = value
            setattr(made, field, items)
        return made
    made = copy.copy(node)
    for name in node._fields:
        inner = getattr(node, name, None)
        if isinstance(inner, list):
            setattr(made, name, [
                _with(item, holder, field, place, value) if isinstance(item, ast.AST) and _contains(item, holder)
                else item for item in inner
            ])  # fmt: skip
        elif isinstance(inner, ast.AST) and _contains(inner, holder):
            setattr(made, name, _with(inner, holder, field, place, value))
    return made


def _extract(expr: ast.expr, node: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
    if expr is node:
        return _own(expr)
    if isinstance(expr, ast.BoolOp):
        return _short_circuit(expr, node)
    if isinstance(expr, ast.IfExp) and not _contains(expr.test, node):
        return _branches(expr)
    if isinstance(expr, Comprehension):
        return _loop(expr)
    if isinstance(expr, ast.Lambda):
        raise Final("a tensor decides inside a lambda", "make it a function with a name")
    before: list[ast.stmt] = []
    made = expr
    for holder, field, place in list(_slots(expr)):
        value = getattr(holder, field) if place is None else getattr(holder, field)[place]
        if _contains(value, node):
            inner, new = _extract(value, node)
            swapped = _with(made, _twin(made, expr, holder), field, place, new)
            return [*before, *inner], swapped
        held, new = _kept(value)
        if held:
            before += held
            made = _with(made, _twin(made, expr, holder), field, place, new)
    raise Final("a tensor decides in a place that cannot be taken apart", "give this decision an `if` of its own")


def _twin(made: ast.expr, expr: ast.expr, holder: ast.AST) -> ast.AST:
    """The node of a changed copy that stands where `holder` stood in the original."""
    if holder is expr:
        return made
    for one, other in zip(_wrappers(expr), _wrappers(made), strict=True):
        if one is holder:
            return other
    return holder


def _wrappers(node: ast.AST) -> list[ast.AST]:
    kinds = (ast.Starred, ast.keyword, ast.FormattedValue, ast.Slice)
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, kinds):
            found += [child, *_wrappers(child)]
    return found


def _kept(value: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
    """An expression evaluated now, for later use."""
    if pure(value):
        return [], value
    if isinstance(value, ast.Attribute):
        before, base = _kept(value.value)
        made = copy.copy(value)
        made.value = base
        return before, made
    name = fresh("kept")
    return [assign(name, value)], load(name, value)


def _own(expr: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
    """The statements of the expression itself."""
    name = fresh("value")
    if isinstance(expr, ast.Call):
        packed = fresh("call")
        made = ast.Call(ast.Name("__flow_pack__", ast.Load()), [expr.func, *expr.args], expr.keywords)
        inline = Inline()
        inline.target, inline.packed = ast.Name(name, ast.Store()), ast.Name(packed, ast.Load())
        return [assign(packed, located(made, expr)), located(inline, expr)], load(name, expr)
    if isinstance(expr, ast.Subscript):
        packed = fresh("choice")
        both = located(ast.Tuple([expr.value, expr.slice], ast.Load()), expr)
        choose = Choose()
        choose.target, choose.packed = ast.Name(name, ast.Store()), ast.Name(packed, ast.Load())
        return [assign(packed, both), located(choose, expr)], load(name, expr)
    if isinstance(expr, ast.IfExp):
        return _branches(expr)
    if isinstance(expr, ast.BoolOp):
        return _short_circuit(expr, expr.values[1])
    if isinstance(expr, ast.NamedExpr):
        return [assign(expr.target.id, expr.value)], load(expr.target.id, expr)
    if isinstance(expr, Comprehension):
        return _loop(expr)
    raise Final("a tensor decides in a place that cannot be taken apart", "give this decision an `if` of its own")


def _branches(expr: ast.IfExp) -> tuple[list[ast.stmt], ast.expr]:
    name = fresh("value")
    return [located(ast.If(expr.test, [assign(name, expr.body)], [assign(name, expr.orelse)]), expr)], load(name, expr)


def _short_circuit(expr: ast.BoolOp, node: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
    """`a and b` as `t = a; if t: t = b`."""
    place = next(n for n, value in enumerate(expr.values) if _contains(value, node))
    if place == 0:
        before, inner = _extract(expr.values[0], node)
        made = copy.copy(expr)
        made.values = [inner, *expr.values[1:]]
        return before, made

    def part(values: list[ast.expr]) -> ast.expr:
        return values[0] if len(values) == 1 else located(ast.BoolOp(expr.op, values), expr)

    name = fresh("value")
    first, rest = assign(name, part(expr.values[:place])), assign(name, part(expr.values[place:]))
    test: ast.expr = load(name, expr)
    if isinstance(expr.op, ast.Or):
        test = called("__flow_not__", [test], expr)
    return [first, located(ast.If(test, [rest], []), expr)], load(name, expr)


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        made = copy.copy(node)
        made.id = self.names.get(node.id, node.id)
        return made


def _loop(expr: Any) -> tuple[list[ast.stmt], ast.expr]:
    """A comprehension as a loop; its variables get names of their own."""
    expr = copy.deepcopy(expr)
    bound = {name.id for part in expr.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)}
    renamed = _Renamed({name: fresh(name) for name in bound})
    first = expr.generators[0].iter  # is evaluated outside, before the variables are bound
    expr.generators[0].iter = ast.Constant(None)
    expr = renamed.visit(expr)
    expr.generators[0].iter = first
    name = fresh("items")
    is_dict, is_set = isinstance(expr, ast.DictComp), isinstance(expr, ast.SetComp)
    if is_dict:
        add: ast.stmt = ast.Assign([ast.Subscript(load(name, expr), expr.key, ast.Store())], expr.value)
    else:
        method = ast.Attribute(load(name, expr), "add" if is_set else "append", ast.Load())
        add = ast.Expr(ast.Call(method, [expr.elt], []))
    body: list[ast.stmt] = [located(add, expr)]
    for part in reversed(expr.generators):
        for test in reversed(part.ifs):
            body = [located(ast.If(test, body, []), test)]
        body = [located(ast.For(part.target, part.iter, body, []), expr)]
    empty = ast.Dict([], []) if is_dict else ast.List([], ast.Load())
    made: ast.expr = ast.Call(ast.Name("set", ast.Load()), [], []) if is_set else empty
    return [assign(name, located(made, expr)), *body], load(name, expr)
