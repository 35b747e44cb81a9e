"""Exported graphs made fit for the tracing exporter.

A graph of `torch.export` asks for sizes with `aten.sym_size` and hands them on to ATen overloads, and a trace turns
both into constants: the batch size of the example would be burnt in. The same calls through the Python functions of
torch keep sizes symbolic.
"""

import copy
import operator
import warnings
from typing import Any

import torch
from torch import fx, nn

_CHECKS = frozenset(
    {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range"}
)


def traceable(net: nn.Module) -> nn.Module:
    """The network itself, or for a graph module a copy (sharing its parameters) that traces with a free batch axis."""
    if not isinstance(net, fx.GraphModule):
        return net
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies its own pytree specs in a way it deprecates
        graph = copy.deepcopy(net.graph)
    symbolic: set[fx.Node] = set()
    for node in list(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
        elif _name(node) == "sym_size":
            node.op, node.target = "call_method", "size"
            symbolic.add(node)
        elif any(argument in symbolic for argument in node.all_input_nodes):
            if node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math"):
                symbolic.add(node)
            else:
                _call_through_python(node)
    graph.lint()
    copied = fx.GraphModule(net, graph, class_name=type(net).__name__)
    copied.train(net.training)
    return copied


def _name(node: fx.Node) -> str | None:
    """`view` of `aten.view.default`; None for anything but an ATen call."""
    text = str(node.target) if node.op == "call_function" else ""
    return text.split(".")[1] if text.startswith("aten.") else None


def _is_check(node: fx.Node) -> bool:
    guard = node.op == "call_module" and str(node.target).startswith("_guards")
    return not node.users and (guard or _name(node) in _CHECKS or node.target is operator.le)


def _call_through_python(node: fx.Node) -> None:
    name = _name(node)
    if name is None:
        return
    if name == "slice":
        node.target = _slice
        return
    first: Any = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and hasattr(torch.Tensor, name):
        node.op, node.target = "call_method", name
    elif hasattr(torch, name):
        node.target = getattr(torch, name)


def _slice(value: torch.Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> torch.Tensor:
    return value[(slice(None),) * (dim % value.ndim) + (slice(start, end, step),)]
