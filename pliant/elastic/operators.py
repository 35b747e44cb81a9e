"""How operators are called by whatever runs a graph: the runner and the modules that are taken out."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.graph.ir import Node, Program, refs, resolve_target

_METHODS = {"aten.view.default": "reshape", "aten.reshape.default": "reshape", "aten._unsafe_view.default": "reshape",
            "aten.expand.default": "expand", "aten.repeat.default": "repeat", "aten.sym_size.int": "size"}  # fmt: skip
_PUBLIC: dict[str, Callable[..., Any]] = {
    "aten.conv1d.default": torch.conv1d, "aten.conv2d.default": torch.conv2d, "aten.conv3d.default": torch.conv3d,
    "aten.linear.default": F.linear, "aten.batch_norm.default": torch.batch_norm, "aten.relu.default": torch.relu,
    "aten.layer_norm.default": torch.layer_norm, "aten.gelu.default": F.gelu, "aten.dropout.default": torch.dropout,
    "aten.add.Tensor": torch.add, "aten.mul.Tensor": torch.mul, "aten.embedding.default": torch.embedding,
    "aten.matmul.default": torch.matmul, "aten.addmm.default": torch.addmm, "aten.tanh.default": torch.tanh,
    "aten.transpose.int": torch.transpose, "aten.permute.default": torch.permute,
    "aten.scaled_dot_product_attention.default": F.scaled_dot_product_attention,
}  # fmt: skip
_FORGET_RESULT = {"aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear", "aten.batch_norm", "aten.group_norm",
                  "aten.add", "aten.addmm"}  # fmt: skip
"""Operators whose gradient does not read their result, so that it may be written over."""


def method_of(node: Node) -> str | None:
    """The tensor method that a call is written as, so that tracers see sizes that depend on the batch; or None."""
    return None if node.kwargs else _METHODS.get(node.target)


def function_of(node: Node) -> Callable[..., Any]:
    """What is called: torch's public function where there is one, which takes less ado than the overload."""
    return _PUBLIC.get(node.target) or resolve_target(node.target)


def in_place_of(node: Node) -> str | Callable[..., Any]:
    """What writes the result of a call over its first operand: a tensor method's name, or else an overload."""
    written = node.packet.removeprefix("aten.") + "_"
    if hasattr(Tensor, written):
        return written
    return resolve_target(f"aten.{written}.{node.target.rpartition('.')[2]}")


def overwriting(program: Program) -> dict[str, str]:
    """Calls that may write over their first operand as the network did: their name to the operand's.

    Nobody else may read the operand, and whatever made it must not need it for gradients. Where the operand is what a
    span ends in, the span must be kept: a skipped one hands on its shortcut, which is somebody else's.
    """
    makers = {node.name: node for node in program}
    readers = Counter(ref.name for node in program for ref in refs((node.args, node.kwargs)))
    readers.update(ref.name for ref in refs(program.output))
    operands = {node.name: node.args[0].name for node in program if node.in_place}
    return {
        name: operand
        for name, operand in operands.items()
        if makers[operand].packet in _FORGET_RESULT and readers[operand] == 1
    }
