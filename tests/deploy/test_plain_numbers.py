"""Numbers in graphs: fewer operators, the same answers."""

from collections import Counter

import numpy as np
import onnx
import pytest

from pliant.deploy.blocks import prune
from pliant.deploy.plain_numbers import plain_numbers
from pliant_runtime.sessions import new_session

COUNTS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, int64 n, int64 most) => (bool again, int64 next, float[2] y, int64 same)
<int64[1] one = {1}, int64[0] none = {}>
{
  unit = Constant <value: tensor = int64[1] {1}> ()
  empty = Constant <value: tensor = int64[0] {}> ()
  n1 = Reshape (n, unit)
  m1 = Reshape (most, unit)
  up = Add (n1, unit)
  less = Less (up, m1)
  a = Reshape (less, empty)
  b = Reshape (a, unit)
  again = Reshape (b, empty)
  next = Reshape (up, empty)
  same = Reshape (up, empty)
  up0 = Reshape (up, empty)
  f = Cast <to: int = 1> (up0)
  y = Mul (x, f)
}
"""
NEEDED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, int64 n) => (int64[2] y, int64[1] z)
{
  unit = Constant <value: tensor = int64[1] {1}> ()
  n1 = Reshape (n, unit)
  up = Add (n1, unit)
  y = Concat <axis: int = 0> (up, n1)
  z = Mul (up, unit)
}
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64 n, bool c) => (int64 y)
{
  unit = Constant <value: tensor = int64[1] {1}> ()
  empty = Constant <value: tensor = int64[0] {}> ()
  n1 = Reshape (n, unit)
  up = Add (n1, unit)
  z = If (c) <then_branch = t () => (int64[1] p) { p = Identity (up) },
              else_branch = e () => (int64[1] q) { q = Neg (up) }>
  y = Reshape (z, empty)
}
"""
FEEDS = {"x": np.array([1.5, -2.0], np.float32), "n": np.array(4), "most": np.array(7), "c": np.array(True)}


def answers(proto: onnx.ModelProto) -> list[np.ndarray]:
    session = new_session(proto.SerializeToString())
    found: list[np.ndarray] = session.run(None, {item.name: FEEDS[item.name] for item in session.get_inputs()})
    return found


@pytest.mark.parametrize(("text", "left"), [(COUNTS, 0), (NEEDED, 1), (BRANCHES, 2)])
def test_graphs_answer_as_before_with_fewer_operators(text: str, left: int) -> None:
    proto = onnx.parser.parse_model(text)
    before = answers(proto)
    plain_numbers(proto)
    prune(proto)
    onnx.checker.check_model(proto)
    after = answers(proto)
    assert [(array.dtype, array.shape) for array in after] == [(array.dtype, array.shape) for array in before]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert Counter(node.op_type for node in proto.graph.node)["Reshape"] == left


def test_a_number_handed_out_twice_is_copied_once() -> None:
    proto = onnx.parser.parse_model(COUNTS)
    plain_numbers(proto)
    prune(proto)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["Identity"] == 1
    assert sum(kinds.values()) - kinds["Constant"] == 5  # Add, Less, Cast, Mul and the copy
