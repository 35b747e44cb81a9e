"""Kernels: convolutions whose taps bend, from the centre outwards.

The taps of a convolution cannot change places, so they are no units that labels could find: their group is *ordered*.
Keeping its first `c` taps (`c` odd) keeps the centre crop on every spatial axis at once, and the padding follows, so
that the result keeps its size. Once-for-All (Cai et al. 2019, arXiv:1908.09791, section 3.3) calls this elastic kernel
size. Because it changes what a network computes by more than leaving units out, it bends only where it is asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor

from pliant.graph.analyse import Analysis, Axis, Rigid
from pliant.graph.ir import Node, Program, Ref, argument, refs, schema_names
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")


def is_asked(name: str, asked: Iterable[str]) -> bool:
    """Whether a pattern that names the kind itself fits: `kernel:*` asks for kernels, `*` asks for nothing."""
    kind = name.partition(":")[0]
    return any(fnmatchcase(name, pattern) for pattern in asked if pattern.partition(":")[0] == kind)


@dataclass(frozen=True)
class Kernel:
    """A convolution weight whose taps bend.

    Args:
        name: `kernel:module.path`.
        states: its names in the state dict (several where it is tied).
        calls: the convolutions that use it, by node name.
        size: taps along each spatial axis.
        floor: the smallest size at which no padding goes below zero.
    """

    name: str
    states: tuple[str, ...]
    calls: tuple[str, ...]
    size: int
    floor: int


def find_kernels(program: Program, states: Mapping[str, Tensor], trainable: set[str], frozen: set[str],
                 asked: Sequence[str]) -> tuple[list[Kernel], list[Rigid]]:  # fmt: skip
    """The kernels that were asked for and can bend, and why the others cannot."""
    if not any(pattern.startswith("kernel:") for pattern in asked):
        return [], []
    nodes = {node.name: node for node in program}
    of_tensor: dict[int, list[Node]] = {}
    for node in program.states:
        of_tensor.setdefault(id(states[node.target]), []).append(node)
    users: dict[int, list[Node]] = {key: [] for key in of_tensor}
    found: list[Kernel] = []
    refused: list[Rigid] = []
    for node in program:
        for name in {ref.name for ref in refs((node.args, node.kwargs)) if _is_state(nodes, ref)}:
            users[id(states[nodes[name].target])].append(node)
        computed = node.packet in _CONVOLUTIONS and not _is_state(nodes, node.args[1])
        if computed and is_asked(f"kernel:{node.module}", asked):
            refused.append(Rigid(node.target, node.module, node.line, "kernel: its weight is computed"))
    given_out = {id(states[nodes[ref.name].target]) for ref in refs(program.output) if _is_state(nodes, ref)}
    for key, owners in of_tensor.items():
        name, shape = (
            f"kernel:{owners[0].target.rpartition('.')[0] or owners[0].target}",
            states[owners[0].target].shape,
        )
        calls = [node for node in users[key] if node.packet in _CONVOLUTIONS and node.args[1] in map(_ref, owners)]
        if not calls or max(shape[2:]) == 1 or not is_asked(name, asked):
            continue
        names = [owner.target for owner in owners]
        reason, floor = _floor(calls, tuple(shape[2:]))
        if len(calls) < len(users[key]):
            reason = f"its weight also goes into {next(node.target for node in users[key] if node not in calls)}"
        elif key in given_out:
            reason = "its weight is also an output"
        elif not set(names) <= trainable or set(names) & frozen:
            reason = "its weight is frozen" if set(names) & frozen else "its weight is no parameter"
        if reason:
            refused.append(Rigid(calls[0].target, calls[0].module, calls[0].line, f"kernel: {reason}"))
        else:
            found.append(Kernel(name, tuple(names), tuple(node.name for node in calls), shape[2], floor))
    return found, refused


def _is_state(nodes: dict[str, Node], value: Any) -> bool:
    return isinstance(value, Ref) and value.name in nodes and nodes[value.name].kind == "state"


def _ref(node: Node) -> Ref:
    return Ref(node.name)


def _floor(calls: list[Node], taps: tuple[int, ...]) -> tuple[str, int]:
    """Why a kernel cannot bend (empty: it can), and the smallest size that it can have."""
    size, floor = taps[0], 1
    if any(tap != size for tap in taps) or size % 2 == 0:
        return f"its size {'x'.join(map(str, taps))} is not odd and the same on every axis", size
    for node in calls:
        if argument(node, "transposed", False):
            return "a transposed convolution", size
        padding = argument(node, "padding", 0)
        if padding == "same":
            continue
        amounts, steps = _per_axis(padding, len(taps)), _per_axis(argument(node, "dilation", 1), len(taps))
        if amounts is None or steps is None:
            return f"its padding is {padding!r}", size
        floor = max(floor, *(size - 2 * (amount // step) for amount, step in zip(amounts, steps, strict=True)))
    return ("" if floor < size else "its padding would go below zero"), floor


def _per_axis(value: Any, dims: int) -> list[int] | None:
    """A literal number for each spatial axis; None where there is something else."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) for number in numbers) or len(numbers) not in (1, dims):
        return None
    return numbers * dims if len(numbers) == 1 else numbers


def bend_kernels(program: Program, analysis: Analysis, kernels: Sequence[Kernel]) -> list[Patch]:
    """Enter kernels into an analysis, one group each, in order; returns the paddings that follow."""
    patches: list[Patch] = []
    nodes = {node.name: node for node in program}
    of_state = {node.target: node.name for node in program.states}
    for kernel in kernels:
        group, size = len(analysis.units), kernel.size
        axis = Axis(np.full(size, group, dtype=np.int64), _from_centre(size))
        analysis.units.append(size)
        dims = len(analysis.shapes[of_state[kernel.states[0]], 0]) - 2
        for state in kernel.states:
            analysis.axes.update({(of_state[state], 0, 2 + a): axis for a in range(dims)})
        analysis.macs = [
            (node, constant / size**dims, [*axes, *[axis] * dims]) if node in kernel.calls else (node, constant, axes)
            for node, constant, axes in analysis.macs
        ]
        for call in kernel.calls:
            patches += _paddings(nodes[call], axis, dims)
    return patches


def _from_centre(size: int) -> IntArray:
    """The rank of each tap: 0 in the middle, the largest at the ends."""
    rank = np.empty(size, dtype=np.int64)
    rank[sorted(range(size), key=lambda tap: abs(tap - size // 2))] = np.arange(size)
    return rank


def _paddings(node: Node, axis: Axis, dims: int) -> list[Patch]:
    """padding - dilation * (k - c) / 2 for c kept of k taps."""
    padding = argument(node, "padding", 0)
    if padding == "same":
        return []
    amounts, steps = _per_axis(padding, dims) or [], _per_axis(argument(node, "dilation", 1), dims) or []
    key: int | str = "padding" if "padding" in node.kwargs else schema_names(node.target).index("padding")
    if isinstance(key, str):
        node.kwargs = {**node.kwargs, key: amounts}
    else:
        node.args = (*node.args[:key], amounts, *node.args[key + 1 :])
    size = len(axis.group)
    return [
        Patch(node.name, key, i, axis, (step, 2), offset=2 * amount - step * size)
        for i, (amount, step) in enumerate(zip(amounts, steps, strict=True))
    ]
