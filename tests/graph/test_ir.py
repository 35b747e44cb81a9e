"""The program as plain data: what it may call, what it may be named, and JSON both ways."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pliant.core import PliantError
from pliant.graph.ir import (
    Named,
    Node,
    Program,
    Ref,
    argument,
    decode,
    encode,
    is_mutable,
    may_alias,
    refs,
    resolve_target,
    substitute,
    verify,
)


def test_operators_are_found_by_name() -> None:
    assert resolve_target("aten.linear.default") is torch.ops.aten.linear.default
    assert resolve_target("operator.mul")(3, 4) == 12
    assert resolve_target("torch.sym_max")(3, 4) == 4


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.os.system", "torch.hub.load", "torch.ops.load_library", "load_library", "os.system",
     "operator.methodcaller", "operator.attrgetter", "operator", "builtins.eval", "aten.linear",
     "aten.nothing.default", "nothing.add.default", "aten.linear.default.__class__", "classes.load_library",
     "aten.__class__.mro", ""],
)  # fmt: skip
def test_nothing_but_operators_is_ever_called(target: str) -> None:
    with pytest.raises(PliantError, match=r"no operator '.*' in torch 2\."):
        resolve_target(target)


@pytest.mark.parametrize(
    "node",
    [Node("a", "input", "x): pass\nimport os; f("), Node("a", "input", "1x"), Node("a", "state", 'w"); import os; ("'),
     Node("a", "state", "w\\"), Node("a", "state", "w\n"), Node("a", "call", "torch.load"),
     Node("a", "call", "aten.relu.default", (), {"self=print(1), x": 1})],
)  # fmt: skip
def test_names_cannot_break_out_of_source_text(node: Node) -> None:
    with pytest.raises(PliantError):
        verify(Program([node], Ref("a")))


def test_usual_names_pass() -> None:
    nodes = [Node("x", "input", "input_ids"), Node("w", "state", "blocks.0.my-layer.weight"),
             Node("y", "call", "aten.linear.default", (Ref("x"), Ref("w")), {"bias": None})]  # fmt: skip
    verify(Program(nodes, Ref("y")))


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.builds(Ref, st.text()),
    st.sampled_from([torch.float32, torch.int64, torch.contiguous_format, torch.strided, torch.device("cpu")]),
)  # fmt: skip
_NAMES = st.text("abc", min_size=1)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.lists(st.tuples(_NAMES, inner)).map(lambda pairs: Named([k for k, _ in pairs], [v for _, v in pairs]))
    return st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text(), inner), named)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, Named):
        return isinstance(other, Named) and one.keys == other.keys and _same(list(one), list(other))
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    return type(one) is type(other) and bool(one == other)


@given(st.recursive(_LEAVES, _nested, max_leaves=12))
def test_operands_survive_json(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert _same(value, decode(json.loads(text)))


@pytest.mark.parametrize("data", [{"ref": "a", "more": 1}, {"pickle": "x"}, {"float": "x"}, {"torch": "load"}])
def test_unknown_operands_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises((PliantError, ValueError)):
        decode(data)


def test_operands_of_other_types_cannot_be_stored() -> None:
    with pytest.raises(PliantError, match="cannot store an operand of type Tensor"):
        encode([torch.zeros(1)])


def test_refs_and_substitution_reach_everything() -> None:
    value = (Ref("a"), [Ref("b"), {"k": Ref("c")}], Named(["n"], [Ref("d")]), 3)
    assert [ref.name for ref in refs(value)] == ["a", "b", "c", "d"]
    done = substitute(value, lambda ref: ref.name.upper())
    assert done == ("A", ["B", {"k": "C"}], ["D"], 3)
    assert isinstance(done[2], Named)
    assert done[2].keys == ["n"]


def test_arguments_are_found_wherever_they_were_given() -> None:
    node = Node("y", "call", "aten.softmax.int", (Ref("x"),), {"dim": -1})
    assert argument(node, "dim") == -1
    assert argument(node, "self") == Ref("x")
    assert argument(node, "dtype", "absent") == "absent"
    assert Node("y", "call", "aten.softmax.int").packet == "aten.softmax"


def test_what_writes_and_what_shares_memory() -> None:
    assert [is_mutable(f"aten.{name}") for name in ("relu_.default", "add_.Tensor", "relu.default")] == [
        True,
        True,
        False,
    ]
    sharing = (
        "view.default",
        "reshape.default",
        "relu_.default",
        "contiguous.default",
        "dropout.default",
        "chunk.default",
    )
    assert all(may_alias(f"aten.{name}") for name in sharing)
    assert may_alias("operator.getitem")
    assert not any(
        may_alias(f"aten.{name}") for name in ("relu.default", "linear.default", "clone.default", "cat.default")
    )


def test_dead_calls_go_and_writes_stay() -> None:
    relu = "aten.relu.default"
    nodes = [Node("x", "input", "x"), Node("n", "state", "count"), Node("dead", "call", relu, (Ref("x"),)),
             Node("w", "call", "aten.add_.Tensor", (Ref("n"), 1)), Node("y", "call", relu, (Ref("x"),))]  # fmt: skip
    kept = Program(nodes, Ref("y")).without_dead()
    assert [node.name for node in kept] == ["x", "n", "w", "y"]


def test_a_stored_graph_may_not_call_modules() -> None:
    with pytest.raises(PliantError, match="a stored graph cannot call a module"):
        verify(Program([Node("a", "call", "module.os")], Ref("a")))
    with pytest.raises(PliantError, match="can be run by its graph alone"):
        resolve_target("module.os")()


def test_a_program_without_a_form_takes_its_inputs_as_tensors() -> None:
    program = Program([Node("a", "input", "left"), Node("b", "input", "right")], Ref("b"))
    assert program.form.names == ("left", "right")
    assert program.without_dead().form == program.form


def test_live_picks_by_the_mode() -> None:
    assert (resolve_target("pliant.live")(True, 1, 2), resolve_target("pliant.live")(False, 1, 2)) == (1, 2)
