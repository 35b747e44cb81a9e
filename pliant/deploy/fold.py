"""Sizes in an ONNX graph as constants, which exporters spread over many small nodes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pliant_runtime.sessions import new_session

Array = np.ndarray[Any, Any]
_SIZED = {
    "Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "ConstantOfShape": (0,), "Tile": (1,), "Pad": (1,),
    "Range": (0, 1, 2), "Split": (1,), "TopK": (1,), "Unsqueeze": (1,), "Squeeze": (1,),
}  # fmt: skip
"""Operators, and which of their inputs are sizes."""


def folded(proto: Any, feeds: Mapping[str, Array], *, rows: bool = False, numbers: bool = True) -> Any:
    """The same graph with constants for its sizes.

    Args:
        proto: a graph for inputs of these sizes alone.
        feeds: inputs.
        rows: whether the number of rows is free; then what follows from the shape of a value is no constant.
        numbers: whether single numbers become constants, too (the scale of attention, computed from a shape).
    """
    made = onnx.ModelProto.FromString(proto.SerializeToString())
    constant: set[str] = set()
    weights = {item.name for item in made.graph.initializer if item.data_type != TensorProto.INT64}
    known = {item.name for item in made.graph.initializer} - weights
    for node in made.graph.node:
        fixed = all(name in constant or name in known or not name for name in node.input)
        if fixed if rows or node.op_type != "Shape" else True:
            constant |= set(node.output)
    wanted = [
        (node, place)
        for node in made.graph.node
        for place, name in enumerate(node.input)
        if name in constant and (_is_size(node, place) or (numbers and node.output[0] not in constant))
    ]
    names = sorted({node.input[place] for node, place in wanted})
    if not names:
        return made
    probe = onnx.ModelProto.FromString(made.SerializeToString())
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = new_session(probe.SerializeToString())
    given = {item.name: feeds[item.name] for item in session.get_inputs()}
    arrays = dict(zip(names, session.run(names, given), strict=True))
    nodes, letter = [], "g" if rows else "f"
    for number, (node, place) in enumerate(wanted):
        array = np.asarray(arrays[node.input[place]])
        if array.ndim < 2 and (array.size < 2 or _is_size(node, place)):
            value = numpy_helper.from_array(array)
            nodes.append(helper.make_node("Constant", [], [f"{letter}#{number}"], value=value))
            node.input[place] = f"{letter}#{number}"
    nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _is_size(node: Any, place: int) -> bool:
    return place in _SIZED.get(node.op_type, ())
