"""Numbers in the graph of a block: computed as [], where they were computed as [1] and came and went as []."""

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper, numpy_helper

_ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Cos", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Round", "Sigmoid",
    "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where", "Xor",
))  # fmt: skip
"""Operators whose output has the shape that its inputs broadcast to."""

_INNER = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def plain_numbers(proto: Any) -> None:
    """Take away every Reshape between [] and [1] round operators that make no difference between them.

    A session spends about as long on a Reshape of one number as on computing with it, and a block that counts has more
    of them than anything else. What nothing reads any more is left in the graph.
    """
    if any(attribute.type in _INNER for node in proto.graph.node for attribute in node.attribute):
        return  # graphs within may read any value by its name
    graph = _Numbers(proto.graph)
    graph.join()
    graph.flatten()


class _Numbers:
    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node
                          if node.op_type == "Constant" and node.attribute[0].name == "value"}  # fmt: skip
        self.scalars = {item.name for item in graph.input
                        if item.type.tensor_type.HasField("shape") and not item.type.tensor_type.shape.dim}  # fmt: skip
        self.outputs = {item.name for item in graph.output}
        self.reshapes = {node.output[0]: (node, shape) for node, shape in self._reshapes()}

    def _reshapes(self) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """Those to [] and to [1]."""
        for node in self.graph.node:
            if node.op_type == "Reshape" and node.input[1] in self.constants:
                shape = tuple(self.constants[node.input[1]].tolist())
                if shape in ((), (1,)):
                    yield node, shape

    def join(self) -> None:
        """Of several in a row only the last one counts."""
        for node, _ in self.reshapes.values():
            while node.input[0] in self.reshapes:
                node.input[0] = self.reshapes[node.input[0]][0].input[0]

    def flatten(self) -> None:
        """Compute as [] what starts from numbers and is read by nothing that could tell the difference."""
        numbers = self._numbers()
        names: dict[str, str] = {}
        nodes = []
        for node in self.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            made = node.output[0]
            shape = self.reshapes[made][1] if made in self.reshapes else None
            if (shape == (1,) and made in numbers) or (shape == () and node.input[0] in numbers | self.scalars):
                if made not in self.outputs:
                    names[made] = node.input[0]
                    continue
                node = helper.make_node("Identity", [node.input[0]], [made])
            elif made in numbers:
                nodes += self._as_numbers(node)
            nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._name_outputs()

    def _name_outputs(self) -> None:
        """Who makes a number that is only handed on makes it under the output's name."""
        free = {name for node in self.graph.node for name in node.output} - self.outputs
        names: dict[str, str] = {}
        for node in self.graph.node:
            source, made = node.input[0] if node.input else "", node.output[0]
            if node.op_type == "Identity" and made in self.outputs and source in free:
                names[source] = made
                free.remove(source)
        nodes = [node for node in self.graph.node if names.get(node.input[0] if node.input else "") != node.output[0]]
        for node in nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _as_numbers(self, node: Any) -> list[Any]:
        """Constants of one entry for one operator, as []."""
        found = []
        for place, name in enumerate(node.input):
            if name in self.constants and self.constants[name].ndim:
                node.input[place] = f"{node.output[0]}#{place}"
                value = numpy_helper.from_array(self.constants[name].reshape(()))
                found.append(helper.make_node("Constant", [], [node.input[place]], value=value))
        return found

    def _numbers(self) -> set[str]:
        """Values [1] that may be [] as well."""
        numbers: set[str] = set()
        ones = {name for name, value in self.constants.items() if value.size == 1 and value.ndim < 2}
        scalars = set(self.scalars)
        for node in self.graph.node:
            made = node.output[0]
            if made in self.reshapes:
                shape = self.reshapes[made][1]
                if shape == ():
                    scalars.add(made)
                elif node.input[0] in scalars:
                    numbers.add(made)
            elif node.op_type in _ELEMENTWISE and set(node.input) <= numbers | ones and set(node.input) & numbers:
                numbers.add(made)
        while fixed := self._fixed(numbers):
            numbers -= fixed
        return numbers

    def _fixed(self, numbers: set[str]) -> set[str]:
        """Those that something needs as [1], or that come from such."""
        found = numbers & self.outputs
        for node in self.graph.node:
            made, read = node.output[0], numbers & set(node.input)
            if made in self.reshapes:
                continue
            if made not in numbers:
                found |= read
            elif not set(node.input) <= numbers | set(self.constants):
                found.add(made)
        return found
