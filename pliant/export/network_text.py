"""A network's ONNX graph as text, so that networks of any search space can be compared."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.core import PliantError
from pliant_runtime.sessions import new_session

_SHOWN = ("kernel_shape", "strides", "dilations", "group", "pads", "axis", "perm", "alpha", "transA", "transB", "mode")
_REAL = (1, 10, 11, 16)  # float, float16, double, bfloat16 of onnx.TensorProto


def network_text(model: Any) -> str:
    """An ONNX graph in words: one line per operator, in the order in which they run.

    A line reads `Conv kernel_shape 3x3 strides 2x2 group 1 in 1x16x32x32 weights 32x16x3x3 out 1x32x16x16`: operator,
    attributes, shapes of what it takes, of its weights and of its result, for a batch of one. Values of weights, names
    and operators that only compute shapes are left out, so that equal networks have equal texts whatever space they
    come from (after "ONNX-Net: Towards Universal Representations and Instant Performance Prediction for Neural
    Architectures", whose text also names the edges; here the order of the lines stands for them).

    Args:
        model: an `onnx.ModelProto`, what `to_onnx` returns, or the path of an `.onnx` file.

    Returns:
        Lines, each ended by a newline.

    Raises:
        PliantError: the file cannot be read, or the graph does not run on one row of zeros.
        TypeError: something else was given.
    """
    return "".join(f"{operator.text}\n" for operator in operators(proto_of(model)))


@dataclass(frozen=True)
class Operator:
    """One operator of a graph that computes with real numbers.

    Args:
        text: its line of `network_text`.
        node: the `onnx.NodeProto`.
    """

    text: str
    node: Any


def operators(proto: Any) -> list[Operator]:
    """The operators of a graph in the order in which they run, without those that only bring weights into form."""
    shapes = {name: value.shape for name, value in values_of(proto).items() if value.dtype.kind in "fc"}
    shapes |= {value.name: shape for value, shape in _inputs(proto)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in _REAL}
    found = []
    for node in proto.graph.node:
        real = [name for name in node.output if name in shapes]
        if node.op_type == "Constant" or not real:
            continue
        if all(name in weights or name not in shapes for name in node.input):  # a weight in another form
            weights |= {name: shapes[name] for name in real}
        else:
            found.append(Operator(_line(node, shapes, weights), node))
    return found


def proto_of(model: Any) -> Any:
    """The `onnx.ModelProto` of whatever `network_text` takes."""
    import onnx

    if isinstance(model, str | Path):
        try:
            return onnx.load(model)
        except Exception as error:  # protobuf raises its own kinds
            raise PliantError(f"cannot be read as ONNX ({error})", where=str(model)) from error
    proto = getattr(model, "proto", model)
    if not isinstance(proto, onnx.ModelProto):
        raise TypeError(f"give an ONNX model, the result of to_onnx or a path, got {type(model).__name__}")
    return proto


def simplified(proto: Any) -> Any:
    """The graph after the rewrites that onnxruntime makes on every machine: BatchNorm folded, constants computed."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "simple.onnx")
        try:
            ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own kinds
            raise PliantError(f"onnxruntime refuses the graph ({error})", where=proto.graph.name or "ONNX") from error
        return onnx.load(options.optimized_model_filepath)


def values_of(proto: Any) -> dict[str, NDArray[Any]]:
    """Every tensor that the operators of a graph compute from one row of zeros, by name.

    Raises:
        PliantError: the graph does not run.
    """
    from onnx import ModelProto, ValueInfoProto, helper

    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    names = [name for node in proto.graph.node for name in node.output if name]
    whole.graph.output.extend(ValueInfoProto(name=name) for name in names)
    feeds = {
        value.name: np.zeros(shape, dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value, shape in _inputs(proto)
    }
    try:
        results = new_session(whole.SerializeToString()).run(names, feeds)
    except Exception as error:  # onnxruntime raises its own kinds
        raise PliantError(f"does not run on one row of zeros ({error})", where=proto.graph.name or "ONNX") from error
    return {name: value for name, value in zip(names, results, strict=True) if isinstance(value, np.ndarray)}


def _inputs(proto: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Inputs that are no weights, and their shapes with free axes of one."""
    held = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name not in held:
            yield value, tuple(dimension.dim_value or 1 for dimension in value.type.tensor_type.shape.dim)


def _line(node: Any, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, tuple[int, ...]]) -> str:
    words = [node.op_type, *_attributes(node)]
    for name in node.input:
        if name in weights:
            words += ["weights", _told(weights[name])]
        elif name in shapes:
            words += ["in", _told(shapes[name])]
    words += [word for name in node.output if name in shapes for word in ("out", _told(shapes[name]))]
    return " ".join(words)


def _attributes(node: Any) -> Iterator[str]:
    from onnx import helper

    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for name in _SHOWN:
        if name in given:
            value = given[name]
            yield name
            if isinstance(value, list | tuple):
                yield _told(value)
            else:
                yield value.decode() if isinstance(value, bytes) else f"{value:g}"


def _told(shape: Any) -> str:
    return "x".join(str(int(size)) for size in shape) or "scalar"


# -- reading it back --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What a line of `network_text` says.

    Args:
        operator: its kind, such as `Conv`.
        weights: shapes of its weights.
        taken: shapes of what it takes.
        results: shapes of what it gives.
        group: of a convolution.
    """

    operator: str
    weights: tuple[tuple[int, ...], ...]
    taken: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    group: int = 1

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a matrix product."""
        return self.operator in _PRODUCTS

    @property
    def channels(self) -> int:
        """Of its first result."""
        shape = self.results[0] if self.results else ()
        return (shape[1] if self.operator.startswith("Conv") and len(shape) > 1 else shape[-1]) if shape else 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a convolution or a matrix product; 0 of others."""
        if not self.multiplies or not self.results:
            return 0
        result = int(np.prod(self.results[0]))
        if self.weights:
            return int(np.prod(max(self.weights, key=np.prod))) * result // max(1, self.channels)
        return result * self.taken[0][-1] if self.taken else 0

    @property
    def values(self) -> int:
        """Numbers read and written, weights left out."""
        return sum(int(np.prod(shape)) for shape in (*self.taken, *self.results))

    @property
    def parameters(self) -> int:
        """Numbers in its weights."""
        return sum(int(np.prod(shape)) for shape in self.weights)


_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def read_line(line: str) -> Line:
    """The inverse of what wrote the line, as far as `Line` goes."""
    words = line.split()
    shapes: dict[str, list[tuple[int, ...]]] = {"weights": [], "in": [], "out": []}
    group = 1
    for mark, word in pairwise(words):
        if mark in shapes:
            shapes[mark].append(tuple(int(part) for part in word.split("x") if part.isdigit()))
        elif mark == "group":
            group = int(word)
    held, taken, results = (tuple(shapes[mark]) for mark in ("weights", "in", "out"))
    return Line(words[0] if words else "", held, taken, results, group)
