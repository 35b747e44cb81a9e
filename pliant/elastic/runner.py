"""Runner: one compiled function that runs every sub-network of a graph.

The program is written out as Python source once. Whatever differs between sub-networks (sliced weights, sizes, kept
spans) comes in as an argument, so that switching costs nothing but filling three lists.
"""

import linecache
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from pliant.core import make_output
from pliant.elastic.operators import function_of, in_place_of, method_of, overwriting
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Named, Node, Opaque, Ref, refs
from pliant.graph.spans import ALWAYS, Guard

_serial = count()


class Runner:
    """A graph as one Python function.

    Args:
        graph: the traced network.
        dtype: float64 to run everything that says float32 in double precision (for checks), or None.
    """

    def __init__(self, graph: Graph, *, dtype: torch.dtype | None = None) -> None:
        self._dtype, self._opaque = dtype, graph.program.opaque
        self._constants: list[Any] = [make_output]
        self._names: dict[str, str] = {TRAINING: "training"}
        self._sizes = {(patch.node, patch.key, patch.item): (i, patch) for i, patch in enumerate(graph.patches)}
        self.states = [node.target for node in graph.program.states]
        self.inputs = [node.target for node in graph.program.inputs]
        self._overwriting = overwriting(graph.program)
        self._merges: dict[str, list[int]] = {}
        for i, span in enumerate(graph.spans):
            self._merges.setdefault(span.merge, []).append(i)
        self.source = self._write(graph)
        name = f"<pliant graph {next(_serial)}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        scope: dict[str, Any] = {"c": self._constants}
        exec(compile(self.source, name, "exec"), scope)
        self._run: Callable[..., Any] = scope["run"]

    def __call__(self, inputs: Sequence[Any], weights: Sequence[Tensor | None], sizes: Sequence[int],
                 spans: Sequence[bool], training: bool, opaque: Mapping[str, Opaque] | None = None) -> Any:  # fmt: skip
        """Run a sub-network.

        Args:
            inputs: one for each input, in order.
            weights: sliced state tensors in the order of `states`; None where a skipped span owns it.
            sizes: the values of the graph's patches.
            spans: which spans are kept.
            training: the live flag.
            opaque: sub-modules that run as they are, in place of the graph's.
        """
        return self._run(inputs, weights, sizes, spans, training, self._opaque if opaque is None else opaque)

    def _write(self, graph: Graph) -> str:
        lines = ["def run(inputs, weights, sizes, spans, training, opaque):"]
        nodes = graph.program.nodes
        for node in nodes:
            self._names[node.name] = f"v{len(self._names)}"
        for kind, source in (("input", "inputs"), ("state", "weights")):
            names = [self._names[node.name] for node in nodes if node.kind == kind]
            if names:
                lines.append(f"    {', '.join(names)}{',' if len(names) == 1 else ''} = {source}")
        last = _last_use(graph)
        previous: Guard = ALWAYS
        for node in nodes:
            if node.kind != "call":
                continue
            guard = graph.guards.get(node.name, ())
            if not guard:
                continue
            if guard not in (ALWAYS, previous):
                ways = (" and ".join(f"spans[{i}]" for i in sorted(kept)) for kept in guard)
                lines.append(f"    if {' or '.join(ways)}:")
            previous = guard
            indent = "    " if guard == ALWAYS else "        "
            if node.live:
                lines.append(f"{indent}if training:")
                indent += "    "
            call = self._call(node)
            for i in self._merges.get(node.name, ()):
                span = graph.spans[i]
                call = f"({call} if spans[{i}] else {self._names[span.shortcut]})"
            dead = [self._names[name] for name in last.get(node.name, ())]
            ending = "; " + " = ".join(dead) + " = None" if dead else ""
            lines.append(f"{indent}{self._names[node.name]} = {call}{ending}")
        lines.append(f"    return {self._literal(graph.program.output, None, ())}")
        return "\n".join(lines) + "\n"

    def _constant(self, value: Any) -> str:
        self._constants.append(value)
        return f"c[{len(self._constants) - 1}]"

    def _call(self, node: Node) -> str:
        if node.target == "pliant.live":
            _, inside, outside = (self._literal(arg, None, ()) for arg in node.args)
            return f"({inside} if training else {outside})"
        if node.target.startswith("module."):
            path = node.target.removeprefix("module.")
            call = self._constant(self._opaque[path].calls[node.args[0]])
            operands = ", ".join(self._literal(arg, None, ()) for arg in node.args[1:])
            return f"{call}(opaque[{path!r}].module, [{operands}])"
        parts = [self._literal(arg, node, (i,)) for i, arg in enumerate(node.args)]
        parts += [f"{name}={self._literal(arg, node, (name,))}" for name, arg in node.kwargs.items()]
        call = self._invoke(method_of(node) or function_of(node), parts)
        operand = self._overwriting.get(node.name)
        if operand is None:
            return call
        written = self._invoke(in_place_of(node), parts)
        kept = " and ".join(f"spans[{i}]" for i in self._merges.get(operand, ()))
        return f"({written} if {kept} else {call})" if kept else written

    def _invoke(self, called: Any, operands: list[str]) -> str:
        if isinstance(called, str):
            return f"{operands[0]}.{called}({', '.join(operands[1:])})"
        return f"{self._constant(called)}({', '.join(operands)})"

    def _literal(self, value: Any, node: Node | None, place: tuple[int | str, ...]) -> str:
        """An operand as source text; numbers that follow the kept units read from `sizes`."""
        if node is not None and place:
            key = (node.name, place[0], place[1] if len(place) > 1 else None)
            if key in self._sizes:
                i, patch = self._sizes[key]
                if not patch.ratio:
                    return f"sizes[{i}]"
                return f"({self._names[value.name]} * sizes[{i}] // {len(patch.axis.group)})"
        if isinstance(value, Ref):
            return self._names[value.name]
        if isinstance(value, Named):
            return f"c[0]({value.keys!r}, {', '.join(self._literal(item, None, ()) for item in value)})"
        if isinstance(value, tuple | list):
            inner = ", ".join(self._literal(item, node, (*place, i)) for i, item in enumerate(value))
            left, right = ("(", ",)" if inner else ")") if isinstance(value, tuple) else ("[", "]")
            return f"{left}{inner}{right}"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self._literal(item, None, ())}" for key, item in value.items()) + "}"
        if value is torch.float32 and self._dtype is not None:
            value = self._dtype
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        return self._constant(value)


def _last_use(graph: Graph) -> dict[str, list[str]]:
    """For each node the values that nobody needs after it, so that they can be freed."""
    shortcuts: dict[str, set[str]] = {}
    for span in graph.spans:
        shortcuts.setdefault(span.merge, set()).add(span.shortcut)
    kept = {ref.name for ref in refs(graph.program.output)}
    last: dict[str, list[str]] = {}
    for node in reversed(graph.program.nodes):
        if node.kind != "call" or node.name not in graph.guards:
            continue
        used = {ref.name for ref in refs((node.args, node.kwargs))} - {TRAINING} | shortcuts.get(node.name, set())
        fresh = sorted(used - kept)
        kept |= used
        if fresh and graph.guards[node.name] == ALWAYS and not node.live:
            last[node.name] = fresh
    return last
