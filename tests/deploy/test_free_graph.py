"""One graph for all lengths: constants that follow from the length are computed, and others are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pliant.deploy.fold import folded
from pliant.deploy.free_graph import NoForm, Source, common
from pliant_runtime.sessions import new_session

LENGTHS = [{"L": 6}, {"L": 7}, {"L": 9}, {"L": 20}]
SOURCES = {"L": Source(0, TensorProto.FLOAT, (1, "L"), 1)}


def graph(length: int, value: Any) -> Any:
    """`o#0` is a constant, and `o#1` the input."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.asarray(value))),
        helper.make_node("Identity", ["c"], ["o#0"]),
        helper.make_node("Identity", ["p#0"], ["o#1"]),
    ]
    array = np.asarray(value)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    outputs = [helper.make_tensor_value_info("o#0", kind, array.shape),
               helper.make_tensor_value_info("o#1", TensorProto.FLOAT, [1, length])]  # fmt: skip
    inputs = [helper.make_tensor_value_info("p#0", TensorProto.FLOAT, [1, length])]
    made = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def causal(n: int) -> Any:
    return np.triu(np.full((n, n), -np.inf, np.float32), 1)


FOLLOWS: dict[str, Callable[[int], Any]] = {
    "the length": lambda n: np.int64(n),
    "a shape": lambda n: np.array([1, n, 4, 2 * n + 3], np.int64),
    "a float": lambda n: np.float32(n),
    "a quotient": lambda n: np.array([n // 2, (n + 1) // 3], np.int64),
    "a square": lambda n: np.array([n * n], np.int64),
    "positions": lambda n: np.arange(n)[None],
    "positions from one on": lambda n: np.arange(1, n + 1, dtype=np.int32),
    "zeros": lambda n: np.zeros((1, n, 3), np.float32),
    "a causal mask": causal,
    "a causal mask of booleans": lambda n: np.tril(np.ones((n, n), bool))[None, None],
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_constants_that_follow_from_the_length_are_computed(name: str) -> None:
    value = FOLLOWS[name]
    shapes = {"p#0": (1, "L"), "o#0": tuple("?" * np.ndim(value(6))), "o#1": (1, "L")}
    made = common([graph(each["L"], value(each["L"])) for each in LENGTHS], LENGTHS, SOURCES, shapes)
    session = new_session(made.SerializeToString())
    assert session.get_inputs()[0].shape == [1, "L"]
    for length in (2, 3, 8, 31):
        found = session.run(["o#0"], {"p#0": np.zeros((1, length), np.float32)})[0]
        wanted = np.asarray(value(length))
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


REFUSED: dict[str, tuple[Callable[[int], Any], str]] = {
    "another function": (lambda n: np.array([1 << n], np.int64), "neither a multiple nor a quotient"),
    "a fraction": (lambda n: np.float32(1.0 / n), "neither a multiple nor a quotient"),
    "a table": (lambda n: np.sin(np.arange(n, dtype=np.float32)), "a table of numbers follows"),
    "a square table": (lambda n: np.arange(n * n).reshape(n, n), "a table of numbers follows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_constants_are_refused(name: str) -> None:
    value, said = REFUSED[name]
    shapes = {"p#0": (1, "L"), "o#0": tuple("?" * np.ndim(value(6))), "o#1": (1, "L")}
    with pytest.raises(NoForm, match=said):
        common([graph(each["L"], value(each["L"])) for each in LENGTHS], LENGTHS, SOURCES, shapes)


def test_a_length_that_nothing_has_and_other_operators_are_refused() -> None:
    shapes: dict[str, Any] = {"p#0": (1, "L"), "o#0": (), "o#1": (1, "L")}
    protos = [graph(each["L"], np.int64(each["L"])) for each in LENGTHS]
    with pytest.raises(NoForm, match="is given nothing that has it"):
        common(protos, LENGTHS, {}, shapes)
    protos[1].graph.node[1].op_type = "Neg"
    with pytest.raises(NoForm, match="other operators at other lengths"):
        common(protos, LENGTHS, SOURCES, shapes)


def test_a_size_of_an_input_that_is_a_multiple_is_read_back() -> None:
    source = {"L": Source(0, TensorProto.FLOAT, (1, "2*L+1"), 1, 2, 1)}
    protos = [graph(2 * each["L"] + 1, np.int64(each["L"])) for each in LENGTHS]
    made = common(protos, LENGTHS, source, {"p#0": (1, "2*L+1"), "o#0": (), "o#1": (1, "2*L+1")})
    session = new_session(made.SerializeToString())
    assert session.run(["o#0"], {"p#0": np.zeros((1, 23), np.float32)})[0] == 11


def test_sizes_that_are_spread_over_nodes_become_constants() -> None:
    nodes = [
        helper.make_node("Shape", ["p#0"], ["shape"], start=1, end=2),
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array([3], np.int64))),
        helper.make_node("Div", ["shape", "three"], ["part"]),
        helper.make_node("Concat", ["part", "three"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["p#0", "sizes"], ["o#0"]),
    ]
    info = [helper.make_tensor_value_info("p#0", TensorProto.FLOAT, [1, 6])]
    out = [helper.make_tensor_value_info("o#0", TensorProto.FLOAT, [2, 3])]
    made = helper.make_graph(nodes, "g", info, out)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = folded(proto, {"p#0": np.zeros((1, 6), np.float32)})
    sizes = next(node.input[1] for node in found.graph.node if node.op_type == "Reshape")
    constant = next(node for node in found.graph.node if sizes in node.output)
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [2, 3]
    onnx.checker.check_model(found)
    many = folded(proto, {"p#0": np.zeros((1, 6), np.float32)}, rows=True)
    assert "sizes" in next(list(node.input) for node in many.graph.node if node.op_type == "Reshape")
