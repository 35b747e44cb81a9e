"""The program: a network as a list of operator calls, in plain data.

A traced network is a straight list of nodes over ATen operators. Nothing in it refers to the user's classes, so it can
be stored as JSON, run, cut and printed anywhere.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, copied
from pliant.core._torch_private import is_overload
from pliant.core.forms import Form, pack, rebuilt

TRAINING = "training"
"""Name of the pseudo node that stands for the module's live `training` flag."""


@dataclass(frozen=True)
class Ref:
    """A reference to the value of a node."""

    name: str


@dataclass
class Node:
    """One step.

    Args:
        name: unique in its program.
        kind: "input" (an argument), "state" (a parameter, buffer or constant; `target` is its name in the state
            dict) or "call" (an operator).
        target: "aten.linear.default", "operator.getitem", or a state name.
        args, kwargs: operands; every `Ref` in them names an earlier node.
        module: path of the module that made the call.
        line: the user's source as "file:line: code".
        in_place: whether the network wrote the result over its first operand. Here the call is functional all the
            same; whoever emits it may do as the network did where the operand is still the network's own.
        live: whether the call is made in training alone; only calls like it and `pliant.live` read its value.
    """

    name: str
    kind: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    line: str = ""
    in_place: bool = False
    live: bool = False

    @property
    def packet(self) -> str:
        """The operator without its overload: "aten.linear"."""
        return self.target.rpartition(".")[0] if self.target.count(".") >= 2 else self.target

    @property
    def place(self) -> str:
        """Where it comes from, for messages."""
        return " ".join(part for part in (self.target, f"in {self.module}" if self.module else "", self.line) if part)


@dataclass(frozen=True)
class Opaque:
    """A sub-module that export cannot follow: it is run as it is, between fixed inputs and outputs.

    Args:
        name: its class.
        reason: why.
        line: the line of its code that cannot be followed.
        module: the sub-module itself.
        calls: how it is called at each place.
    """

    name: str
    reason: str
    line: str
    module: nn.Module = field(compare=False, repr=False)
    calls: tuple["OpaqueCall", ...] = ()


@dataclass(frozen=True)
class OpaqueCall:
    """One place where an opaque sub-module is called.

    Args:
        arguments: (args, kwargs) with slots for what the node's operands give.
        output: the form of what it returns.
        method: what is called, where it is not the sub-module itself.
    """

    arguments: Any
    output: Any
    method: str = "forward"

    def __call__(self, module: nn.Module, operands: Sequence[Any]) -> list[Any]:
        """The tensors in what a module returns.

        Raises:
            PliantError: it returns something of another form than when it was traced.
        """
        args, kwargs = rebuilt(self.arguments, iter(operands), objects=True)
        leaves: list[Any] = []
        run = module if self.method == "forward" else getattr(module, self.method)
        form = pack(run(*args, **kwargs), leaves, objects=True)
        if form != self.output:
            raise PliantError(
                "a sub-module that runs as it is returned another structure than when it was traced",
                where=type(module).__name__,
                fix="return the same structure every time",
            )
        return leaves


def call_opaque(module: nn.Module, call: OpaqueCall, *operands: Any) -> list[Any]:
    """`call(module, operands)`, as a function that an fx graph can name."""
    return call(module, operands)


def live(training: bool, inside: Any, outside: Any) -> Any:
    """What training adds to a value, or in evaluation the value itself."""
    return inside if training else outside


@dataclass
class Program:
    """Nodes in the order of execution, and the structure that is returned (with `Ref`s as leaves).

    `constants` holds the state that is none of the module's: tensors written out in its code. `form` says how the
    network is called; without one, with its tensors alone. `opaque` holds, by path, the sub-modules that are called as
    they are.
    """

    nodes: list[Node]
    output: Any
    constants: dict[str, Tensor] = field(default_factory=dict)
    form: Form = None  # type: ignore[assignment]
    opaque: dict[str, Opaque] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = tuple(node.target for node in self.inputs)
        if not self.form or self.form.names != names:
            self.form = Form.plain(names)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def inputs(self) -> list[Node]:
        """The arguments, in order."""
        return [node for node in self.nodes if node.kind == "input"]

    @property
    def states(self) -> list[Node]:
        """The parameters, buffers and constants that are used."""
        return [node for node in self.nodes if node.kind == "state"]

    def without_dead(self) -> "Program":
        """The same program without calls whose value is never used (in-place updates of state stay)."""
        alive = {ref.name for ref in refs(self.output)}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.kind == "input" or node.name in alive or writes_state(node):
                kept.append(node)
                alive.update(ref.name for ref in refs((node.args, node.kwargs)))
        return replace(self, nodes=kept[::-1])


def callable_of(program: Program, node: Node) -> Callable[..., Any]:
    """What a call calls: an operator, or a sub-module that runs as it is."""
    space, _, path = node.target.partition(".")
    if space != "module":
        return resolve_target(node.target)
    opaque = program.opaque[path]
    return lambda index, *operands: opaque.calls[index](opaque.module, operands)


def evaluated(program: Program, dtype: torch.dtype | None = None) -> Program:
    """The program with copies of its opaque sub-modules, in evaluation mode, so that running it changes nothing."""
    copies = {path: copied(opaque.module).eval() for path, opaque in program.opaque.items()}
    if dtype is not None:
        copies = {path: module.to(dtype) for path, module in copies.items()}
    held = {path: replace(opaque, module=copies[path]) for path, opaque in program.opaque.items()}
    return replace(program, opaque=held)


def refs(value: Any) -> Iterator[Ref]:
    """Every `Ref` in nested tuples, lists, dicts and slices."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs(item)


def substitute(value: Any, fn: Callable[[Ref], Any]) -> Any:
    """`value` with `fn` applied to every `Ref` in it."""
    if isinstance(value, Ref):
        return fn(value)
    if isinstance(value, Named):
        return Named(value.keys, [substitute(item, fn) for item in value.values])
    if isinstance(value, tuple | list):
        return type(value)(substitute(item, fn) for item in value)
    if isinstance(value, dict):
        return {key: substitute(item, fn) for key, item in value.items()}
    return value


def substitute_node(node: "Node") -> "Node":
    """A copy of a node that shares nothing mutable."""
    args, kwargs = substitute((node.args, node.kwargs), lambda ref: ref)
    return replace(node, args=args, kwargs=kwargs)


class Named(list[Any]):
    """An output with named fields (dataclass, `ModelOutput`); becomes `pliant.core.Output` when run."""

    def __init__(self, keys: list[str], values: list[Any]) -> None:
        super().__init__(values)
        self.keys = list(keys)

    @property
    def values(self) -> list[Any]:
        """The fields' values in the order of `keys`."""
        return list(self)


_SCALARS = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt",
            "ge", "and_", "or_", "not_", "abs", "pos", "lshift", "rshift")  # fmt: skip
"""Functions of `operator` that a graph may call, on tuples and on numbers that depend on the batch."""


def _needs_graph(*_: Any, **__: Any) -> Any:
    raise PliantError("a sub-module that runs as it is can be run by its graph alone")


@cache
def resolve_target(target: str) -> Callable[..., Any]:
    """The callable behind a target string: an operator overload, a scalar function, or one of `torch.sym_*`.

    Nothing else is ever called, because a stored graph may come from anywhere.

    Raises:
        PliantError: no such operator in this torch.
    """
    space, *names = target.split(".")
    found: Any = None
    if target == "pliant.live":
        return live
    if space == "module":
        return _needs_graph
    if space == "operator" and len(names) == 1 and names[0] in _SCALARS:
        found = getattr(operator, names[0])
    elif space == "torch" and len(names) == 1 and names[0].startswith("sym_"):
        found = getattr(torch, names[0], None)
    elif space != "torch" and len(names) == 2:
        found = getattr(getattr(getattr(torch.ops, space, None), names[0], None), names[1], None)
        found = found if is_overload(found) else None
    if found is None:
        fix = "import the package that defines it, or use the torch version it was traced with"
        raise PliantError(f"no operator {target!r} in torch {torch.__version__}", fix=fix)
    return found  # type: ignore[no-any-return]


@cache
def arguments_of(target: str) -> tuple[Any, ...]:
    """What an operator's schema says of its arguments; empty for plain Python functions."""
    schema = getattr(resolve_target(target), "_schema", None)
    return () if schema is None else tuple(schema.arguments)


@cache
def schema_names(target: str) -> tuple[str, ...]:
    """The names of an operator's arguments; empty for plain Python functions."""
    return tuple(argument.name for argument in arguments_of(target))


@cache
def is_mutable(target: str) -> bool:
    """Whether an operator writes to one of its operands."""
    schema = getattr(resolve_target(target), "_schema", None)
    return schema is not None and bool(schema.is_mutable)


_SOMETIMES_SELF = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout")


@cache
def may_alias(target: str) -> bool:
    """Whether a result of an operator can share memory with its first operand: views, in-place operators, no-ops."""
    if target == "operator.getitem" or target.startswith(_SOMETIMES_SELF):
        return True
    schema = getattr(resolve_target(target), "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def writes_state(node: Node) -> bool:
    """Whether a call must stay although nobody reads its value."""
    return node.kind == "call" and is_mutable(node.target)


def argument(node: Node, name: str, default: Any = None) -> Any:
    """The argument of a call by its schema name, wherever it was given."""
    if name in node.kwargs:
        return node.kwargs[name]
    names = schema_names(node.target)
    if name in names and names.index(name) < len(node.args):
        return node.args[names.index(name)]
    return default


def verify(program: Program) -> None:
    """Check a program that was stored: names end up in source text, so that none may break out of it.

    Raises:
        PliantError: a name that no module and no operator has, or an operator that this torch has not.
    """
    for node in program:
        names = [*node.kwargs]
        if node.kind == "input":
            names.append(node.target)
        elif node.kind == "call" and node.target.startswith("module."):
            raise PliantError("a stored graph cannot call a module", where=node.name)
        elif node.kind == "call":
            resolve_target(node.target)
        for name in names:
            if not name.isidentifier():
                raise PliantError(f"{name!r} is no name of an argument", where=node.name)
        if node.kind == "state" and (not node.target.isprintable() or set(node.target) & {'"', "\\"}):
            raise PliantError(f"{node.target!r} is no name of a parameter", where=node.name)


def encode(value: Any) -> Any:
    """Operands as JSON data; `decode` is the inverse.

    Raises:
        PliantError: a value of a type that a traced graph does not hold.
    """
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Named):
        return {"named": value.keys, "values": [encode(item) for item in value.values]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise PliantError(f"cannot store an operand of type {type(value).__name__}")


def _torch_constant(name: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype | torch.memory_format | torch.layout):
        raise PliantError(f"torch.{name} is no operand of a stored graph")
    return found


def decode(data: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    (kind, content), *rest = data.items()
    if kind == "named":
        return Named(content, [decode(item) for item in data["values"]])
    if rest:
        raise PliantError(f"unknown operand {sorted(data)} in a stored graph")
    makers: dict[str, Callable[[Any], Any]] = {
        "ref": Ref,
        "tuple": lambda items: tuple(decode(item) for item in items),
        "dict": lambda items: {key: decode(item) for key, item in items.items()},
        "float": float,
        "torch": _torch_constant,
        "device": torch.device,
    }
    if kind not in makers:
        raise PliantError(f"unknown operand {kind!r} in a stored graph")
    return makers[kind](content)
