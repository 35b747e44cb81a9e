"""What a legal labelled graph is, checked by running it.

A sub-network is right when cutting and computing commute. For operators that only move entries this can be seen on the
labels themselves: every entry of a value gets the sum of its units' codes along all axes, and the operator, applied to
the codes that stay (with its numbers patched), must give the codes that stay of its result. For all other operators at
least every size must be the predicted one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.core import as_call
from pliant.graph import Graph
from pliant.graph.analyse import Axis
from pliant.graph.ir import TRAINING, Node, Ref, resolve_target, substitute
from pliant.graph.labels import IntArray
from pliant.graph.rules import channel_shuffle, concatenate, find_rule, keep, shape, spread

MOVERS = (shape, spread, channel_shuffle, concatenate, keep)
SAME = ("contiguous", "clone", "detach", "alias", "to", "_to_copy", "lift_fresh", "type_as", "float", "half", "real")
"""What the rule `keep` covers and does not change values."""


def check_spec(graph: Graph, counts: IntArray) -> int:
    """Check a sub-network; returns how many operators were compared by their codes.

    Raises:
        AssertionError: an operator whose result has another size or another order than the labels say.
    """
    patches: dict[str, list[tuple[Any, Any, int, Any]]] = {}
    for patch in graph.patches:
        patches.setdefault(patch.node, []).append((patch.key, patch.item, patch.value(counts), patch))
    values = _values(graph, counts, patches)
    compared = 0
    for node in graph.program:
        for index, value in enumerate(
            values[node.name] if isinstance(values[node.name], list | tuple) else [values[node.name]]
        ):
            if isinstance(value, Tensor) and (node.name, index) in graph.analysis.shapes:
                sizes = _kept_shape(graph, node.name, index, counts)
                assert tuple(value.shape) == sizes, f"{node.place}: size {tuple(value.shape)}, the labels say {sizes}"
        rule = find_rule(node) if node.kind == "call" and not node.target.startswith("operator.") else None
        unlike = rule is keep and node.packet.removeprefix("aten.") not in SAME
        if rule in MOVERS and not unlike and not (rule is spread and _grows(graph, node)):
            _compare(graph, node, counts, patches)
            compared += 1
    return compared


def _patched(node: Node, patches: Any, look: Any) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = substitute((list(node.args), node.kwargs), look)
    for key, item, number, patch in patches.get(node.name, ()):
        target: Any = kwargs if isinstance(key, str) else args
        new = target[key][item] * number // len(patch.axis.group) if patch.ratio else number
        target[key] = new if item is None else [new if j == item else old for j, old in enumerate(target[key])]
    return args, kwargs


def _kept(axis: Axis | None, size: int, counts: IntArray) -> Tensor:
    whole = np.ones(size, dtype=bool) if axis is None else axis.kept(counts)
    return torch.from_numpy(np.flatnonzero(whole))


def _kept_shape(graph: Graph, name: str, index: int, counts: IntArray) -> tuple[int, ...]:
    axes = graph.analysis.axes
    return tuple(
        len(_kept(axes.get((name, index, a)), size, counts))
        for a, size in enumerate(graph.analysis.shapes[name, index])
    )


def _values(graph: Graph, counts: IntArray, patches: Any) -> dict[str, Any]:
    """The real values of the sub-network."""
    args, kwargs = as_call(graph.example)
    inputs = iter([*args, *kwargs.values()])
    values: dict[str, Any] = {TRAINING: False}
    with torch.no_grad():
        for node in graph.program:
            if node.kind == "input":
                values[node.name] = next(inputs)
            elif node.kind == "state":
                tensor = graph.states[node.target].detach().clone()
                for a, axis in graph.state_axes[node.target].items():
                    tensor = tensor.index_select(a, _kept(axis, tensor.shape[a], counts))
                values[node.name] = tensor
            else:
                done_args, done_kwargs = _patched(node, patches, lambda ref: values[ref.name])
                values[node.name] = resolve_target(node.target)(*done_args, **done_kwargs)
    return values


def _codes(graph: Graph, name: str, index: int, counts: IntArray | None) -> Tensor:
    """For every entry the sum of random codes of its units; int64, whole where `counts` is None."""
    random = np.random.default_rng(1).integers(1, 2**40, size=(len(graph.analysis.units), 4096))
    shape_ = graph.analysis.shapes[name, index]
    total = torch.zeros(shape_, dtype=torch.int64)
    for a in range(len(shape_)):
        axis = graph.analysis.axes.get((name, index, a))
        if axis is not None:
            line = np.where(axis.group >= 0, random[axis.group, axis.rank], 0)
            total = total + torch.from_numpy(line).view([-1 if b == a else 1 for b in range(len(shape_))])
    if counts is not None:
        for a, size in enumerate(shape_):
            total = total.index_select(a, _kept(graph.analysis.axes.get((name, index, a)), size, counts))
    return total


def _grows(graph: Graph, node: Node) -> bool:
    """Whether an axis that was made of one entry follows units: no entry of the operand says which."""
    before, after = graph.analysis.shapes[node.args[0].name, 0], graph.analysis.shapes[node.name, 0]
    lead = len(after) - len(before)
    grown = [a for a in range(len(after)) if a < lead or before[a - lead] == 1]
    return any((node.name, 0, a) in graph.analysis.axes for a in grown)


def _compare(graph: Graph, node: Node, counts: IntArray, patches: Any) -> None:
    kinds = {other.name: other for other in graph.program}

    def look(ref: Ref) -> Any:
        other = kinds.get(ref.name)
        if other is not None and other.target == "operator.getitem":
            return _codes(graph, *_item(other), counts)
        if (ref.name, 0) in graph.analysis.shapes:
            return _codes(graph, ref.name, 0, counts)
        return _number(graph, kinds, ref)

    args, kwargs = _patched(node, patches, look)
    op = torch.reshape if node.packet == "aten.view" else resolve_target(node.target)
    if node.packet in ("aten.to", "aten._to_copy", "aten.type_as", "aten.float", "aten.half"):
        op, args, kwargs = torch.clone, args[:1], {}
    got = op(*args, **kwargs)
    for index, one in enumerate(got if isinstance(got, list | tuple) else [got]):
        wanted = _codes(graph, node.name, index, counts)
        assert torch.equal(one, wanted), f"{node.place}: the kept units lie in another order than the labels say"


def _item(node: Node) -> tuple[str, int]:
    return node.args[0].name, node.args[1]


def _number(graph: Graph, kinds: dict[str, Node], ref: Ref) -> Any:
    """A number that depends on the batch, as the example gives it."""
    node = kinds[ref.name]
    args = [_number_or_value(graph, kinds, arg) for arg in node.args]
    return resolve_target(node.target)(*args)


def _number_or_value(graph: Graph, kinds: dict[str, Node], arg: Any) -> Any:
    if not isinstance(arg, Ref):
        return arg
    if (arg.name, 0) in graph.analysis.shapes:
        return torch.zeros(graph.analysis.shapes[arg.name, 0])
    return _number(graph, kinds, arg)
