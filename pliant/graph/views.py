"""Views: writes through views of fresh tensors (`out[:, 1:] = x`) as calls that make a new whole.

In place, such a write changes a value that stands under other names, which labels cannot follow. Here what is before,
what is written and what is behind are strung together, and the result takes the old value's place in all later calls.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pliant.core import PliantError
from pliant.graph.ir import (
    Node,
    Program,
    Ref,
    argument,
    is_mutable,
    may_alias,
    refs,
    resolve_target,
    schema_names,
    substitute,
)

_PARTS = ("aten.slice", "aten.select")
_END = 2**63 - 1
_INVERSES: dict[str, Callable[[Node], tuple[str, tuple[object, ...]]]] = {
    "aten.unsqueeze": lambda view: ("aten.squeeze.dim", view.args[1:]),
    "aten.transpose": lambda view: (view.target, view.args[1:]),
    "aten.permute": lambda view: (view.target, (_inverse([d % len(view.args[1]) for d in view.args[1]]),)),
}


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def whole_writes(program: Program) -> Program:
    """The program with such writes as calls that make a new whole; those that cannot be told so stay as they are."""
    memory = _Memory(program)
    usable = memory.usable()
    if not usable and not any(node.target in _COPIES for node in program):
        return program
    return _Rewriter(program, memory, usable).program()


class _Memory:
    """Whose memory each value may share, and through which view."""

    def __init__(self, program: Program) -> None:
        self.nodes = {node.name: node for node in program}
        self.root = {name: name for name in self.nodes}
        self.view: dict[str, Node] = {}
        """Values that are surely a view of their first operand, or that operand itself after a write."""
        self.writes: list[tuple[int, Node]] = []
        self.blurred: list[tuple[int, str, int]] = []
        """What may share memory with others in a way that is not known: since where, with whom, read until where."""
        self.unclear: set[str] = set()
        reads = [*((node.args, node.kwargs) for node in program), program.output]
        self.read = {ref.name: i for i, each in enumerate(reads) for ref in refs(each)}
        for i, node in enumerate(program):
            if node.kind == "call":
                self._enter(i, node)

    def _enter(self, i: int, node: Node) -> None:
        first = node.args[0].name if node.args and isinstance(node.args[0], Ref) else None
        if node.target == "pliant.live" or node.target.startswith("module."):
            self.blurred += [(i, self.root.get(ref.name, ""), _END) for ref in refs((node.args, node.kwargs))]
        elif first in self.root and (is_mutable(node.target) or may_alias(node.target)):
            self.root[node.name] = self.root[first]
            writes = is_mutable(node.target) and node.packet.endswith("_")
            if writes:
                self.writes.append((i, node))
            if writes or node.packet in _PARTS or node.packet in _INVERSES:
                self.view[node.name] = node
            if first in self.unclear or node.name not in self.view:
                self.unclear.add(node.name)
                self.blurred.append((i, self.root[first], self.read.get(node.name, i)))

    def usable(self) -> set[str]:
        """Roots all of whose writes can be told as calls."""
        places = [(i, self.root[node.name]) for i, node in self.writes]
        bad = {root for i, root, until in self.blurred if any(i < at < until for at, r in places if r == root)}
        for _, node in self.writes:
            if node.live or functional_of(node) is None or not self._known(node):
                bad.add(self.root[node.name])
        return {root for _, root in places if root not in bad and self.nodes[root].kind == "call"}

    def _known(self, node: Node) -> bool:
        while node.name in self.view:
            node = self.nodes[node.args[0].name]
        return node.name == self.root[node.name]


_SAME_VALUE = {"aten.zero_.default": "aten.zeros_like.default", "aten.fill_.Scalar": "aten.full_like.default"}
_COPIES = ("aten.copy_.default", "aten.copy.default", "aten.fill_.Tensor", "aten.fill.Tensor")
"""Operators that copy their second operand, at the first one's size and type; torch knows no gradient of it."""


def functional_of(node: Node) -> str | None:
    """The operator that returns what an in-place one writes."""
    if node.target in _COPIES or node.target in _SAME_VALUE:
        return _SAME_VALUE.get(node.target, "aten.copy.default")
    found = f"{node.packet[:-1]}.{node.target.rpartition('.')[2]}"
    try:
        resolve_target(found)
    except PliantError:
        return None
    return found if schema_names(found) == schema_names(node.target) else None


class _Rewriter:
    def __init__(self, program: Program, memory: _Memory, usable: set[str]) -> None:
        self.source, self.memory, self.usable = program, memory, usable
        self.nodes: list[Node] = []
        self.names = set(memory.nodes)
        self.now: dict[str, tuple[str, int]] = {}
        """The present name of each value, and the version of its memory that it shows."""
        self.version = dict.fromkeys(usable, 0)

    def program(self) -> Program:
        """The whole program anew."""
        for node in self.source:
            args, kwargs = substitute((node.args, node.kwargs), self._present)
            node = replace(node, args=args, kwargs=kwargs)
            root = self.memory.root[node.name]
            if root in self.usable and node.kind == "call" and is_mutable(node.target):
                self._write(node, root)
            else:
                self._append(node)
                if root in self.usable:
                    self.now[node.name] = node.name, self.version[root]
        output = substitute(self.source.output, self._present)
        return replace(self.source, nodes=self.nodes, output=output).without_dead()

    def _append(self, node: Node) -> None:
        """A call, with a copy told so that gradients pass."""
        if node.target in _COPIES and not is_mutable(node.target):
            like, source = node.args[:2]
            grown = self._emit(replace(node, target="aten.expand_as.default", args=(source, like), kwargs={}), "_of")
            node = replace(node, target="aten.type_as.default", args=(Ref(grown), like), kwargs={})
        self.nodes.append(node)

    def _emit(self, node: Node, suffix: str) -> str:
        name = node.name + suffix
        while name in self.names:
            name += "_"
        self.names.add(name)
        self.nodes.append(replace(node, name=name))
        return name

    def _present(self, ref: Ref) -> Ref:
        """A value under its present name; a view that was taken before a write is taken again."""
        root = self.memory.root.get(ref.name)
        if root not in self.usable or ref.name not in self.now:
            return ref
        name, version = self.now[ref.name]
        if version < self.version[root]:
            view = self.memory.view[ref.name]
            source = self._present(view.args[0])
            rest = substitute(view.args[1:], self._present)
            name = source.name if is_mutable(view.target) else self._emit(replace(view, args=(source, *rest)), "_again")
            self.now[ref.name] = name, self.version[root]
        return Ref(name)

    def _write(self, node: Node, root: str) -> None:
        """The written value, and each value that it is a view of, as new ones."""
        place = self.memory.nodes[node.name]
        self._append(replace(node, target=functional_of(node) or "", in_place=False))
        new, fresh = node.name, {node.name: node.name}
        while place.name in self.memory.view:
            view, parent = place, self.memory.nodes[place.args[0].name]
            if not is_mutable(view.target):
                whole = self._present(Ref(parent.name))
                view = replace(view, args=(whole, *substitute(view.args[1:], self._present)))
                new = self._whole(view, new, f"{parent.name}_with")
            fresh[parent.name] = new
            place = parent
        self.version[root] += 1
        for name, value in fresh.items():
            self.now[name] = value, self.version[root]

    def _whole(self, view: Node, part: str, suffix: str) -> str:
        """The value that a view is taken of, with `part` in the view's place."""

        def made(target: str, *args: object) -> str:
            return self._emit(Node("", "call", target, args, {}, view.module, view.line), suffix)

        whole, dim = view.args[0], argument(view, "dim", 0)
        if view.packet in _INVERSES:
            target, rest = _INVERSES[view.packet](view)
            return made(target, Ref(part), *rest)
        if view.packet == "aten.select":
            start: Any = argument(view, "index")
            if isinstance(start, Ref):
                return made("aten.select_scatter.default", whole, Ref(part), dim, start)
            end, part = start + 1 or _END, made("aten.unsqueeze.default", Ref(part), dim)
        else:
            start, end = argument(view, "start") or 0, argument(view, "end")
            end = _END if end is None else end
            if argument(view, "step", 1) != 1:
                return made("aten.slice_scatter.default", whole, Ref(part), *view.args[1:])
        parts = [Ref(part)]
        if start != 0:
            parts.insert(0, Ref(made("aten.slice.Tensor", whole, dim, 0, start)))
        if end != _END:
            parts.append(Ref(made("aten.slice.Tensor", whole, dim, end, _END)))
        return made("aten.cat.default", parts, dim) if len(parts) > 1 else part
