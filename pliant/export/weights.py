"""Surgery on the weights of ONNX files; every change of a serialized graph is in this file.

Three things: initializers get the names of the `state_dict`, large constants become initializers, and initializers are
taken out so that a graph without weights can be stored once for many sub-networks.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

LARGE_BYTES = 1024
"""Constants of this size or more are weights: they do not stay inside a stripped graph."""

PLACEHOLDER = "not-a-file"
"""The location stripped initializers name. No such file exists: the values are handed over in memory."""


def tidy(model: Any, prefix: str, state_names: Collection[str]) -> None:
    """Rename initializers `prefix + name` to `name` and lift large constants, in place.

    Args:
        model: an `onnx.ModelProto`.
        prefix: what the exporter put before every name of the state dict.
        state_names: names of the state dict; a value between nodes that has one of them is renamed.
    """
    graph = model.graph
    _lift_constants(graph)
    taken = {value.name for value in [*graph.input, *graph.output]}
    renamed = {}
    for initializer in graph.initializer:
        short = initializer.name.removeprefix(prefix)
        # A parameter that is called like an input keeps its prefix.
        if short != initializer.name and short in state_names and short not in taken:
            renamed[initializer.name] = short
    for name in (_value_names(graph) - taken) & set(renamed.values()):
        renamed[name] = f"{name}__value"
    _rename(graph, renamed)
    # Shapes inside the graph are of the traced example only; onnxruntime infers its own.
    del graph.value_info[:]
    model.doc_string = ""


def _value_names(graph: Any) -> set[str]:
    return {name for node in graph.node for name in [*node.output]}


def _subgraphs(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for inner in _subgraphs(graph):
        _rename(inner, names)


def _lift_constants(graph: Any) -> None:
    """Constant nodes that hold large tensors become initializers of the same name."""
    kept = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
        if value is not None and value.name == "value" and _size(value.t) >= LARGE_BYTES:
            initializer = graph.initializer.add()
            initializer.CopyFrom(value.t)
            initializer.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) != len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def _size(tensor: Any) -> int:
    items = int(np.prod(tensor.dims, dtype=np.int64))
    return items * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def initializers(model: Any) -> dict[str, NDArray[Any]]:
    """Name and value of every initializer with its data inside, in the order of the file."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def strip(model: Any, state_names: Collection[str]) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The graph without its weights, and the weights.

    Every initializer that is named like an entry of the state dict, or is large, becomes a reference; small constants
    of the exporter (shapes, axes) stay, because the runtime's shape inference needs them.

    Returns:
        The serialized graph, equal for models that differ in weights only, and the values taken out, by name.
    """
    stripped = onnx.ModelProto.FromString(model.SerializeToString())
    taken: dict[str, NDArray[Any]] = {}
    for initializer in stripped.graph.initializer:
        if initializer.name not in state_names and _size(initializer) < LARGE_BYTES:
            continue
        taken[initializer.name] = numpy_helper.to_array(initializer)
        empty = onnx.TensorProto(name=initializer.name, data_type=initializer.data_type, dims=initializer.dims)
        empty.data_location = onnx.TensorProto.EXTERNAL
        empty.external_data.add(key="location", value=PLACEHOLDER)
        initializer.CopyFrom(empty)
    _shorten(stripped.graph)
    stripped.producer_name, stripped.producer_version = "pliant", ""
    return bytes(stripped.SerializeToString(deterministic=True)), taken


def _shorten(graph: Any) -> None:
    """Number the values between nodes and drop the names of nodes: in a small network they outweigh everything else.

    Values of inner graphs (branches, loop bodies) keep their names.
    """
    kept = {item.name for item in [*graph.input, *graph.output, *graph.initializer]}
    kept.update(name for inner in _subgraphs(graph) for name in _value_names(inner))
    names: dict[str, str] = {}
    for node in graph.node:
        node.name = ""
        node.doc_string = ""
        del node.metadata_props[:]
        for output in node.output:
            if output and output not in kept:
                names[output] = f"_{len(names)}"
    if not kept & set(names.values()):
        _rename(graph, names)
