"""An ONNX graph in the plain form that shells are cut from: every constant feeds one node, no weight is transposed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


class Unfit(Exception):
    """Why a family cannot be one graph of shells; a reason for a reader, not an error."""


@dataclass(frozen=True)
class Weight:
    """An initializer.

    Args:
        name: in the state dict of the network.
        array: its value.
        order: which axis of the state's tensor each axis is.
    """

    name: str
    array: Array = field(repr=False)
    order: tuple[int, ...]


class Plain:
    """A graph whose weights, constants and nodes can be looked up.

    Args:
        proto: an `onnx.ModelProto` with its weights inside; not changed.
        state_names: names of the network's state dict; other small initializers are constants.

    Raises:
        Unfit: it has branches or loops of its own.
    """

    def __init__(self, proto: Any, state_names: Iterable[str]) -> None:
        graph = proto.graph
        self.opsets, self.ir_version = list(proto.opset_import), proto.ir_version
        self.inputs = list(graph.input)
        self.outputs = list(graph.output)
        if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
            raise Unfit("its graph has branches or loops of its own")
        names = set(state_names)
        stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        constants = {name: value for name, value in stored.items() if name not in names and value.nbytes < 1024}
        self.weights = {
            name: Weight(name, value, tuple(range(value.ndim)))
            for name, value in stored.items()
            if name not in constants
        }
        self.nodes = _single_constants(graph.node, constants)
        self._fold_transposes()
        self._single_weights()
        self.index()

    def index(self) -> None:
        """Look up again who makes a value."""
        self.maker = {name: number for number, node in enumerate(self.nodes) for name in node.output if name}

    def _consumers(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in node.input:
                found.setdefault(name, []).append(number)
        return found

    def _fold_transposes(self) -> None:
        """Weights that only a Transpose reads are stored the other way round: packing needs them so."""
        consumers = self._consumers()
        gone: dict[str, str] = {}
        for name in list(self.weights):
            nodes = [self.nodes[number] for number in consumers.get(name, [])]
            if not nodes or any(node.op_type != "Transpose" for node in nodes):
                continue
            weight = self.weights.pop(name)
            for number, node in enumerate(nodes):
                turn = attribute(node, "perm") or list(range(weight.array.ndim))[::-1]
                key = f"{name}.T" if number == 0 else f"{name}.T{number}"
                array = np.ascontiguousarray(weight.array.transpose(turn))
                self.weights[key] = Weight(name, array, tuple(weight.order[axis] for axis in turn))
                gone[node.output[0]] = key
        self.nodes = [node for node in self.nodes if node.output[0] not in gone]
        for node in self.nodes:
            node.input[:] = [gone.get(name, name) for name in node.input]

    def _single_weights(self) -> None:
        """A weight that several nodes read becomes several: one that two nodes share is never packed and freed."""
        for name, numbers in self._consumers().items():
            if name not in self.weights or not all(is_product(self.nodes[number]) for number in numbers):
                continue
            for copy, number in enumerate(numbers[1:], 1):
                self.weights[f"{name}.{copy}"] = self.weights[name]
                node = self.nodes[number]
                node.input[:] = [f"{name}.{copy}" if each == name else each for each in node.input]

    def model(self, nodes: Iterable[Any], weights: Mapping[str, Array], extra: Iterable[Any] = ()) -> Any:
        """An `onnx.ModelProto` of these nodes and weights, with the inputs (and `extra` ones) and outputs of this."""
        graph = helper.make_graph(
            list(nodes),
            "family",
            [*self.inputs, *extra],
            self.outputs,
            [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
        )
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)

    def values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every value of the graph for some inputs; of a sequence the shapes of its items, one below the other."""
        proto = self.model(self.nodes, {name: weight.array for name, weight in self.weights.items()})
        known = {item.name for item in proto.graph.output}
        names = [name for name in self.maker if name not in known]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = [*names, *known]
        found = dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
        return {name: _shapes(value) if isinstance(value, list) else np.asarray(value) for name, value in found.items()}


def _shapes(items: list[Any]) -> Array:
    shapes = [np.shape(item) for item in items]
    same = len({len(shape) for shape in shapes}) <= 1
    return np.array(shapes if same else [len(shape) for shape in shapes], dtype=np.int64)


def is_product(node: Any) -> bool:
    """Whether a node multiplies matrices."""
    return node.op_type in ("MatMul", "Gemm")


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute of a node."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def constant(node: Any) -> Array | None:
    """The value of a Constant node; None for any other node, and for values that are no arrays of numbers."""
    if node.op_type != "Constant" or not node.attribute:
        return None
    item = node.attribute[0]
    if item.name == "value":
        return None if item.t.data_type == onnx.TensorProto.UNDEFINED else numpy_helper.to_array(item.t)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return np.asarray(helper.get_attribute_value(item), dtype=kinds[item.name]) if item.name in kinds else None


def constant_node(name: str, array: Array) -> Any:
    """A Constant node."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def _single_constants(nodes: Iterable[Any], constants: Mapping[str, Array]) -> list[Any]:
    """Copies of the nodes, with a constant of its own for every use: one shared constant would tie what is apart."""
    made: list[Any] = []
    known = {name: constant_node(name, array) for name, array in constants.items()}
    uses: dict[str, int] = {}
    for original in nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.op_type == "Constant":
            known[node.output[0]] = node
            continue
        for place, name in enumerate(node.input):
            if name not in known:
                continue
            uses[name] = uses.get(name, -1) + 1
            copy = onnx.NodeProto()
            copy.CopyFrom(known[name])
            copy.output[0] = f"{name}.{uses[name]}"
            node.input[place] = copy.output[0]
            made.append(copy)
        made.append(node)
    return made
