"""An ONNX graph for one row on its way to a graph for many; the rules of single operators are in `row_rules`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pliant_runtime.sessions import new_session

ROWS = "N"


class NoRule(Exception):
    """A block cannot run on many rows at once; the text says why."""


class Widened:
    """A block under way to many rows. Shapes and constants are read off a run for one row."""

    def __init__(self, proto: Any, sample: dict[str, Any], rules: Mapping[str, Any]) -> None:
        self.rules = rules
        self.source = onnx.ModelProto.FromString(proto.SerializeToString())
        graph = self.source.graph
        probe = onnx.ModelProto.FromString(proto.SerializeToString())
        names = [name for node in graph.node for name in node.output if name]
        given = [item.name for item in graph.output if item.name not in names]
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in [*names, *given])
        self.probe = new_session(probe.SerializeToString())
        found = dict(zip(names, self.probe.run(names, sample), strict=True))
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.shapes = {name: list(np.shape(array)) for name, array in {**found, **self.constants, **sample}.items()}
        self.found = found
        self.batched = {item.name for item in graph.input}
        self.nodes: list[Any] = []
        self.extra: list[Any] = []
        self.serial = 0

    def made(self) -> Any:
        """The model for many rows."""
        graph = self.source.graph
        for node in graph.node:
            self._node(node)
        made = onnx.ModelProto.FromString(self.source.SerializeToString())
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend(self.extra)
        for item in [*made.graph.input, *made.graph.output]:
            if item.name in self.batched:
                sizes = [size.dim_value for size in item.type.tensor_type.shape.dim]
                item.CopyFrom(helper.make_tensor_value_info(item.name, item.type.tensor_type.elem_type, [ROWS, *sizes]))
        return made

    # -- pieces --------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """A name nothing has yet."""
        self.serial += 1
        return f"r#{self.serial}"

    def constant(self, values: Any) -> str:
        """A small integer constant."""
        name = self.name()
        self.extra.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
        return name

    def emit(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """A node more; returns its first output."""
        names = list(outputs) if outputs is not None else [self.name()]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def reshape(self, value: str, shape: Sequence[int], output: str | None = None) -> str:
        """A value in another shape; the first size may be -1 or 0 as ONNX has it."""
        return self.emit("Reshape", [value, self.constant(shape)], None if output is None else [output])

    def shape(self, name: str) -> list[int]:
        """The shape of a value for one row."""
        return self.shapes[name]

    def value(self, name: str) -> Any:
        """A constant's value."""
        if name not in self.constants:
            raise NoRule("an operator's axes or sizes follow from values")
        return self.constants[name]

    def aligned(self, name: str, rank: int) -> str:
        """A batched value with its row axis before `rank` others."""
        missing = rank - len(self.shape(name))
        if name not in self.batched or missing <= 0:
            return name
        return self.emit("Unsqueeze", [name, self.constant(list(range(1, missing + 1)))])

    def spread(self, name: str) -> str:
        """A value that is the same for all rows, with a row axis of size one."""
        return name if name in self.batched else self.emit("Unsqueeze", [name, self.constant([0])])

    def again(self, node: Any, inputs: Sequence[str], outputs: Sequence[str] | None = None, **changed: Any) -> None:
        """The node itself with other inputs or attributes."""
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = list(inputs)
        if outputs is not None:
            copy.output[:] = list(outputs)
        for name, value in changed.items():
            kept = [attribute for attribute in copy.attribute if attribute.name != name]
            del copy.attribute[:]
            copy.attribute.extend([*kept, helper.make_attribute(name, value)])
        self.nodes.append(copy)

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _node(self, node: Any) -> None:
        inputs = [name for name in node.input if name]
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise NoRule(f"{node.op_type} has graphs of its own")
        if not any(name in self.batched for name in inputs) or node.op_type == "Shape":
            self._same(node)
            return
        if node.op_type.startswith("Random") or node.op_type in ("Multinomial", "Bernoulli"):
            raise NoRule(f"{node.op_type} draws random numbers")
        rule = self.rules.get(node.op_type)
        if rule is None:
            raise NoRule(f"there is no rule for {node.op_type}")
        rule(self, node, {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute})
        self.batched |= {name for name in node.output if name}

    def _same(self, node: Any) -> None:
        """A node whose outputs are the same for all rows."""
        for name in node.output:
            if name:
                self.constants[name] = np.asarray(self.found[name])
        if node.op_type == "Shape":  # of one row
            self.extra.append(numpy_helper.from_array(self.constants[node.output[0]], node.output[0]))
        else:
            self.nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
