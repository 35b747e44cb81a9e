"""Conversion: from the fx graph of an export to a program: inlined, functional, with names and source lines."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.core._torch_private import is_overload
from pliant.core.forms import fill
from pliant.graph.ir import (
    TRAINING,
    Named,
    Node,
    Opaque,
    Program,
    Ref,
    arguments_of,
    is_mutable,
    may_alias,
    resolve_target,
)
from pliant.graph.opaque import OPERATOR, Wrapped

_SKIP = ("_guards_fn", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range")
_TORCH = os.path.dirname(torch.__file__)


class Converter:
    """fx graph to program.

    Args:
        wrapped: what was exported.
        module: what export made of it.
    """

    def __init__(self, wrapped: Wrapped, module: nn.Module) -> None:
        self.wrapped, self.model, self.module = wrapped, wrapped.net, module
        self.opaque: dict[str, Opaque] = {}
        self.trained = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        self.nested = False
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.seen: set[str] = {TRAINING}

    def program(self) -> Program:
        """The whole graph."""
        values = list(self._graph(self.module, self.module.graph, None))
        output = fill(self.wrapped.heard.output, lambda slot: values[slot.index], lambda keys, v: Named(list(keys), v))
        return Program(self.nodes, output, self.constants, self.wrapped.form, self.opaque)

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.seen:
            name, count = f"{wanted}_{count}", count + 1
        self.seen.add(name)
        return name

    def _graph(self, owner: nn.Module, graph: Any, inputs: list[Any] | None) -> Any:
        """Append the nodes of an fx graph; returns the value(s) of its output."""
        env: dict[Any, Any] = {}
        names = list(self.wrapped.form.names)
        pending = list(inputs) if inputs is not None else None
        for fx in graph.nodes:
            if fx.op == "placeholder":
                env[fx] = pending.pop(0) if pending is not None else self._add("input", names.pop(0))
            elif fx.op == "get_attr":
                found = find_attribute(owner, fx.target)
                env[fx] = found if isinstance(found, nn.Module) else self._state(fx.target, found)
            elif fx.op == "output":
                return torch.fx.map_arg(fx.args[0], lambda used: env[used])
            elif any(skip in str(fx.target) for skip in _SKIP):
                continue
            else:
                env[fx] = self._call(fx, env)
        return None

    def _add(self, kind: str, target: str) -> Ref:
        node = Node(self._name(target.replace(".", "_")), kind, target)
        self.nodes.append(node)
        return Ref(node.name)

    def _state(self, target: str, found: Tensor) -> Ref:
        name = target.removeprefix("net.")
        if not target.startswith("net.") or not _has(self.model, name):
            self.constants[name] = found.detach()  # made by the export
        return self._add("state", name)

    def _call(self, fx: Any, env: dict[Any, Any]) -> Any:
        args = _plain(fx.args, env)
        kwargs = _plain(fx.kwargs, env)
        kind = str(fx.target)
        if "wrap_with_autocast" in kind and args[2]:
            raise PliantError(
                "autocast inside a network would be lost",
                where=_line(fx) or None,
                fix="put torch.autocast around the call of the network instead",
            )
        if "wrap_with_set_grad_enabled" in kind or "wrap_with_autocast" in kind:
            skip = 2 if "set_grad" in kind else 5
            inner = args[skip - 1]
            before, self.nested = self.nested, True
            unseen = "set_grad" in kind and args[0] is False
            pairs = zip(fx.args[skip:], args[skip:], strict=True)
            values = self._graph(
                inner, inner.graph, [self._detached(v) if unseen and _is_float(f) else v for f, v in pairs]
            )
            self.nested = before
            return tuple(values)
        if (
            fx.target is torch.ops.higher_order.__dict__.get("cond")
            or fx.op != "call_function"
            or "higher_order" in kind
        ):
            raise PliantError(
                f"the operator {kind} is control flow inside the graph",
                where=_line(fx) or None,
                fix="trace one branch on its own",
            )
        if kind == "<built-in function getitem>" and isinstance(args[0], tuple | list):
            return args[0][args[1]]
        if kind == OPERATOR:
            return self._opaque(fx, args)
        node = Node(self._name(fx.name), "call", _target_name(fx.target), tuple(args), kwargs, _path(fx), _line(fx))
        functional = _without_out(node.target) if isinstance(kwargs.get("out"), Ref) else None
        if functional is None:
            return self._functional(node, fx, env, fx.args[0] if fx.args else None)
        out = node.kwargs.pop("out")
        node.target = functional
        self.nodes.append(node)
        write = Node(
            self._name(f"{fx.name}_out"),
            "call",
            "aten.copy_.default",
            (out, Ref(node.name)),
            {},
            node.module,
            node.line,
        )
        return self._functional(write, fx, env, fx.kwargs["out"])

    def _opaque(self, fx: Any, args: Any) -> Ref:
        """A call of a sub-module that runs as it is."""
        tensors, sizes, key = args
        place = self.wrapped.heard.places[key]
        offence = place.offence
        path, _, method = place.path.partition(":")
        name = type(place.module).__name__ + (f".{method}" if method else "")
        known = self.opaque.get(place.path) or Opaque(name, offence.reason, offence.line, place.module)
        self.opaque[place.path] = replace(known, calls=(*known.calls, place.call))
        operands = place.in_order(tensors, sizes)
        node = Node(
            self._name(fx.name),
            "call",
            f"module.{place.path}",
            (len(known.calls), *operands),
            {},
            path,
            offence.line,
        )
        self.nodes.append(node)
        return Ref(node.name)

    def _detached(self, value: Any) -> Any:
        """A value without its gradient; buffers have none, and may be written to."""
        maker = next((node for node in self.nodes if isinstance(value, Ref) and node.name == value.name), None)
        if maker is None or (maker.kind == "state" and maker.target not in self.trained):
            return value
        node = Node(self._name(value.name + "_detached"), "call", "aten.detach.default", (value,))
        self.nodes.append(node)
        return Ref(node.name)

    def _functional(self, node: Node, fx: Any, env: dict[Any, Any], target: Any) -> Ref:
        """In-place operators on activations become functional ones; writes to state stay as they are.

        So do writes whose effect is seen through another view later on: their labels are fixed by the rules.
        """
        self.nodes.append(node)
        written = node.args[0] if node.args else None
        if not is_mutable(node.target) or not isinstance(written, Ref) or not node.packet.endswith("_"):
            return Ref(node.name)
        by_name = {other.name: other for other in self.nodes}
        functional = _FUNCTIONAL.get(node.target) or f"{node.packet[:-1]}.{node.target.rpartition('.')[2]}"
        root = by_name[written.name]
        while root.kind == "call" and may_alias(root.target) and isinstance(root.args[0], Ref):
            root = by_name[root.args[0].name]
        if root.kind == "state":
            return written
        outer = self.nested and _root(target).op == "placeholder"  # who else sees it is not known in here
        if outer or not _exists(functional) or _seen_elsewhere(fx, target, written, env):
            return Ref(node.name)
        node.kwargs = {**_defaults(node, functional), **node.kwargs}
        node.target, node.in_place = functional, True
        for key, value in list(env.items()):
            if value == written:
                env[key] = Ref(node.name)
        return Ref(node.name)


def _is_float(fx: Any) -> bool:
    value = fx.meta.get("val") if isinstance(fx, torch.fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _seen_elsewhere(fx: Any, target: Any, written: Ref, env: dict[Any, Any]) -> bool:
    """Whether memory that a call writes to (`target`) is read after it under another name than `written`."""
    order = {node: i for i, node in enumerate(fx.graph.nodes)}
    own = _root(target)
    aliases = [node for node in order if node is not fx and order[node] < order[fx] and _root(node) is own]
    return any(order[user] > order[fx] for node in aliases if env.get(node) != written for user in node.users)


def _root(node: Any) -> Any:
    """Whose memory a value may share."""
    while node.op == "call_function" and is_overload(node.target) and may_alias(_target_name(node.target)):
        if not isinstance(node.args[0], torch.fx.Node):
            break
        node = node.args[0]
    return node


def _defaults(node: Node, functional: str) -> dict[str, Any]:
    """Arguments that a call leaves to its operator's defaults, and that another operator wants to be told."""
    required = {argument.name for argument in arguments_of(functional) if not argument.has_default_value()}
    left = [a for a in arguments_of(node.target)[len(node.args) :] if a.name not in node.kwargs]
    return {a.name: a.default_value for a in left if a.has_default_value() and a.name in required}


_FUNCTIONAL = {"aten.bernoulli_.float": "aten.bernoulli.p"}
"""In-place operators whose functional form has another overload's name."""


def _without_out(target: str) -> str | None:
    """The overload that returns what `target` writes into `out`."""
    wanted = [argument.name for argument in arguments_of(target) if argument.name != "out"]
    packet = getattr(torch.ops.aten, target.split(".")[1])
    for overload in packet.overloads():
        if [argument.name for argument in getattr(packet, overload)._schema.arguments] == wanted:
            return f"aten.{target.split('.')[1]}.{overload}"
    return None


def _exists(target: str) -> bool:
    try:
        resolve_target(target)
    except PliantError:
        return False
    return True


def _plain(value: Any, env: dict[Any, Any]) -> Any:
    mapped = torch.fx.map_arg(value, lambda used: env[used])
    return _immutable_to_plain(mapped)


def _immutable_to_plain(value: Any) -> Any:
    if isinstance(value, Ref | Named):
        return value
    if isinstance(value, tuple):
        return tuple(_immutable_to_plain(item) for item in value)
    if isinstance(value, list):
        return [_immutable_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _immutable_to_plain(item) for key, item in value.items()}
    return value


def _has(owner: nn.Module, path: str) -> bool:
    try:
        find_attribute(owner, path)
    except AttributeError:
        return False
    return True


def find_attribute(owner: nn.Module, path: str) -> Any:
    """What stands at a dotted path."""
    found: Any = owner
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _target_name(target: Any) -> str:
    if is_overload(target):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", str(target))
    if module in ("_operator", "operator"):
        return f"operator.{name}"
    return f"torch.{name}"


def _path(fx: Any) -> str:
    stack = fx.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values()]
    path = paths[-1] if paths else ""
    return "" if path.startswith("_empty_nn_module") or path == "net" else path.removeprefix("net.")


def _line(fx: Any) -> str:
    lines = (fx.meta.get("stack_trace") or "").strip().splitlines()
    frames = [(lines[i].strip(), lines[i + 1].strip()) for i in range(0, len(lines) - 1, 2)]
    users = [frame for frame in frames if _TORCH not in frame[0]] or frames
    if not users:
        return ""
    place, code = users[-1]
    parts = place.split('"')
    number = place.partition("line ")[2].partition(",")[0]
    return f"{os.path.basename(parts[1]) if len(parts) > 1 else '?'}:{number}: {code}"
