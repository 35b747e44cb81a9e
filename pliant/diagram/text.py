"""Text: a traced network as lines of plain text, the same for the same network whatever its modules are called."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Named, Node, Ref, callable_of, evaluated, refs, resolve_target, substitute

VERSION = 1
"""Of the text form; part of the text, so that hashes of different forms never meet."""

_PLACE = frozenset({"device", "pin_memory", "layout", "cudnn_enable", "cudnn_enabled"})
"""Arguments that say where a call runs, not what it computes."""

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "truediv": "/", "mod": "%", "pow": "**"}

Key = tuple[str, int]
"""(node, index of its result)."""


@dataclass(frozen=True)
class Size:
    """The length of an axis: `per_row * N + constant`, where N is the number of rows in the batch."""

    per_row: int
    constant: int

    def __str__(self) -> str:
        rows = "" if not self.per_row else "N" if self.per_row == 1 else f"{self.per_row}N"
        if not rows or self.constant:
            return f"{rows}{self.constant:+d}" if rows else str(self.constant)
        return rows


def sizes(graph: Graph) -> dict[Key, tuple[Size, ...]]:
    """The shape of every value with the batch as N, found by running the program on one row more than the example.

    A network whose program takes only batches of the example's size has no N in its shapes. The global random state
    and the network's own state are left alone.
    """
    rows = graph.analysis.batch
    first = graph.analysis.shapes
    try:
        second = _run(graph, rows, rows + 1)
    except (RuntimeError, IndexError, ValueError, TypeError):
        second = first
    found = {}
    for key, shape in first.items():
        other = second.get(key, shape)
        pairs = zip(shape, other if len(other) == len(shape) else shape, strict=True)
        found[key] = tuple(Size(b - a, a - rows * (b - a)) for a, b in pairs)
    return found


def _run(graph: Graph, rows: int, wanted: int) -> dict[Key, tuple[int, ...]]:
    """The shapes with another number of rows."""
    waiting, program = list(graph.inputs), evaluated(graph.program)
    env: dict[str, Any] = {TRAINING: False}
    shapes: dict[Key, tuple[int, ...]] = {}
    last = {ref.name: node.name for node in graph.program for ref in refs((node.args, node.kwargs))}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for node in program:
            if node.kind == "input":
                env[node.name] = _with_rows(waiting.pop(0), rows, wanted)
            elif node.kind == "state":
                tensor = graph.states[node.target]
                env[node.name] = tensor if node.target in graph.parameters else tensor.clone()
            else:
                call_args, call_kwargs = substitute((node.args, node.kwargs), lambda ref: env[ref.name])
                env[node.name] = callable_of(program, node)(*call_args, **call_kwargs)
            value = env[node.name]
            for index, item in enumerate(value if isinstance(value, tuple | list) else [value]):
                if isinstance(item, Tensor):
                    shapes[node.name, index] = tuple(item.shape)
            for ref in refs((node.args, node.kwargs)):
                if last[ref.name] == node.name and ref.name != TRAINING:
                    env[ref.name] = None  # nobody reads it any more
    return shapes


def _with_rows(value: Tensor, rows: int, wanted: int) -> Tensor:
    if not value.dim() or value.shape[0] != rows:
        return value.clone()
    return torch.cat([value, value[:1].expand(wanted - rows, *value.shape[1:])])


def show(value: Any, name_of: Callable[[str], str]) -> str:
    """An operand as text.

    Args:
        value: an operand of a call.
        name_of: node name to what stands for it.
    """
    if isinstance(value, Ref):
        return "training" if value.name == TRAINING else name_of(value.name)
    if isinstance(value, Named):
        pairs = zip(value.keys, value.values, strict=True)
        return "{" + ", ".join(f"{key}: {show(item, name_of)}" for key, item in pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(show(item, name_of) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item, name_of)}" for key, item in value.items()) + "}"
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value).removeprefix("torch.")
    return repr(value)


def call_text(node: Node, name_of: Callable[[str], str]) -> str:
    """A call as `operator(argument=value, ...)`; arguments at their default and those that say where it runs are left
    out, so that it does not matter how a call was spelt.
    """
    schema = getattr(resolve_target(node.target), "_schema", None)
    if schema is None:
        given = [show(arg, name_of) for arg in node.args] + [f"{k}={show(v, name_of)}" for k, v in node.kwargs.items()]
        return f"{node.target}({', '.join(given)})"
    parts = []
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            value = node.args[index]
        elif argument.name in node.kwargs:
            value = node.kwargs[argument.name]
        else:
            continue
        same = argument.has_default_value() and type(value) is type(argument.default_value)
        if argument.name not in _PLACE and not (same and value == argument.default_value):
            parts.append(f"{argument.name}={show(value, name_of)}")
    return f"{node.target}({', '.join(parts)})"


class _Writer:
    """Numbers for values and groups in the order of their first use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = sizes(graph)
        self.nodes = {node.name: node for node in graph.program}
        self.types = _types(graph)
        self.names: dict[str, str] = {}
        self.states: dict[int, str] = {}
        self.groups: dict[int, int] = {}
        self.count = 0
        self.lines = [f"pliant graph {VERSION}"]

    def number(self) -> str:
        self.count += 1
        return f"%{self.count - 1}"

    def name_of(self, name: str) -> str:
        if name not in self.names:  # only states: whatever else is read stands further up
            self._state(self.nodes[name])
        return self.names[name]

    def _state(self, node: Node) -> None:
        tensor = self.graph.states[node.target]
        if id(tensor) not in self.states:
            self.states[id(tensor)] = number = self.number()
            kind = "parameter" if node.target in self.graph.parameters else "buffer"
            self.lines.append(f"{number} = {kind} {_dtype(tensor)}{self.value(node.name, 0)}")
        self.names[node.name] = self.states[id(tensor)]

    def value(self, name: str, index: int) -> str:
        """Shape and elastic axes: `[N, 16] 1:g0`."""
        shape = f"[{', '.join(map(str, self.sizes[name, index]))}]"
        return " ".join([shape, *self._axes(name, index)])

    def _axes(self, name: str, index: int) -> Iterator[str]:
        for axis in range(len(self.sizes[name, index])):
            content = self.graph.analysis.axes.get((name, index, axis))
            if content is not None:
                yield f"{axis}:{self._mix(content.group.tolist())}"

    def _mix(self, groups: list[int]) -> str:
        counts = Counter(groups)  # in the order of appearance
        marks = {g: "fixed" if g < 0 else f"g{self.groups.setdefault(g, len(self.groups))}" for g in counts}
        return marks[groups[0]] if len(counts) == 1 else "+".join(f"{n}*{marks[g]}" for g, n in counts.items())

    def call(self, node: Node) -> None:
        shapes = [index for name, index in self.sizes if name == node.name]
        if not shapes:
            self.names[node.name] = self._scalar(node)
            return
        text = self._text(node)  # states it reads get their lines first
        number = self.names[node.name] = self.number()
        results = ", ".join(self.value(node.name, index) for index in sorted(shapes))
        self.lines.append(f"{number} = {text} -> {results}")

    def _text(self, node: Node) -> str:
        if not node.target.startswith("module."):
            return call_text(node, self.name_of)
        kind = self.graph.program.opaque[node.target.removeprefix("module.")].name
        return f"module.{kind}({', '.join(show(operand, self.name_of) for operand in node.args[1:])})"

    def _scalar(self, node: Node) -> str:
        """A number that depends on the batch, written out where it is used: `N`, `(2 * N)`."""
        args = [show(arg, self.name_of) for arg in node.args]
        if node.packet == "aten.sym_size" and isinstance(node.args[0], Ref) and isinstance(node.args[1], int):
            found = self.sizes.get((node.args[0].name, 0))
            if found is not None:
                return str(found[node.args[1]])
        sign = _SIGNS.get(node.target.removeprefix("operator."))
        return f"({args[0]} {sign} {args[1]})" if sign and len(args) == 2 else f"{node.target}({', '.join(args)})"

    def write(self) -> str:
        for node in self.graph.program:
            if node.kind == "input":
                self.names[node.name] = self.number()
                text = f"{self.types[node.name]}{self.value(node.name, 0)}"
                self.lines.append(f"{self.names[node.name]} = input {text}")
            elif node.kind == "call":
                self.call(node)
        self.lines.append(f"return {show(self.graph.program.output, self.name_of)}")
        return "\n".join(self.lines) + "\n"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _types(graph: Graph) -> Mapping[str, str]:
    """Input node to its dtype."""
    return {node.name: _dtype(tensor) for node, tensor in zip(graph.program.inputs, graph.inputs, strict=True)}


def to_text(graph: Graph) -> str:
    """A traced network as text, one line for each input, weight, call and result.

    A line reads `%7 = aten.linear.default(input=%4, weight=%5, bias=%6) -> [N, 16] 1:g0`: operator, operands by number,
    attributes that are not at their default, the result's shape with the batch as N, and for each elastic axis its
    groups, numbered in the order of first appearance. It names no module, no parameter and no argument of the user's,
    and no value of a weight or buffer: a network built again in another process, with other weights, on another
    device or traced at another batch size has the same text.

    Returns:
        Lines, each ended by a newline.
    """
    return _Writer(graph).write()


def graph_hash(graph: Graph) -> str:
    """SHA-256 over `to_text(graph)`, as 64 hexadecimal digits: equal for networks of the same structure."""
    return hashlib.sha256(to_text(graph).encode()).hexdigest()
