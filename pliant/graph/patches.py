"""Patches: the numbers in a program that must follow the kept units.

Everything a network writes down as a number (the sizes of a view, the bounds of a slice, the groups of a convolution)
is an affine function of the kept counts: a constant plus, for each group, so many for each kept unit.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pliant.graph.analyse import Analysis, Axis
from pliant.graph.ir import Node, Program, Ref, argument, schema_names
from pliant.graph.labels import IntArray
from pliant.graph.rules import SLICES

_SIZES = {
    "aten.view": "size", "aten.reshape": "shape", "aten._unsafe_view": "size", "aten.expand": "size",
    "aten.broadcast_to": "size", "aten.repeat": "repeats", "aten.tile": "dims", "aten.unflatten": "sizes",
    "aten.zeros": "size", "aten.ones": "size", "aten.full": "size", "aten.empty": "size", "aten.new_zeros": "size",
    "aten.new_ones": "size", "aten.new_full": "size", "aten.new_empty": "size",
    "aten.rand": "size", "aten.randn": "size",
}  # fmt: skip


_SPLITS = ("aten.split", "aten.chunk", "aten.split_with_sizes", "aten.unsafe_split", "aten.unsafe_chunk",
           "aten.tensor_split")  # fmt: skip


_COUNTS = {"aten.one_hot": {"num_classes": 0}, "aten.histc": {"bins": 0, "max": -1}, "aten.arange": {"end": 0},
           "aten.bincount": {"minlength": 0}}  # fmt: skip
"""Numbers that are the size of the result's last axis and so much."""


@dataclass(frozen=True)
class Patch:
    """One number to replace: in `node`, argument `key` (position or name), item `item` of a list (None: the argument).

    `scale` is (numerator, denominator): the number is (the axis' kept size * numerator + `offset`) // denominator.
    `ratio` marks a number that depends on the batch and is multiplied by kept / whole when the program runs.
    """

    node: str
    key: int | str
    item: int | None
    axis: Axis
    scale: tuple[int, int] = (1, 1)
    ratio: bool = False
    offset: int = 0

    def value(self, counts: IntArray) -> int:
        """The number for kept counts."""
        return (self.axis.size(counts) * self.scale[0] + self.offset) // self.scale[1]

    def affine(self, n_groups: int) -> tuple[IntArray, int]:
        """Coefficients for each group and the constant of the kept size."""
        members = self.axis.group[self.axis.group >= 0]
        occurrences = np.bincount(members, minlength=n_groups)
        units = np.ones(n_groups, dtype=np.int64)
        for group in np.unique(members):
            units[group] = len(np.unique(self.axis.rank[self.axis.group == group]))
        return occurrences // units, int((self.axis.group < 0).sum())


def find_patches(program: Program, analysis: Analysis) -> list[Patch]:
    """Every number that must follow. Splits into equal parts are rewritten to explicit sizes in place."""
    found: list[Patch] = []
    for node in program:
        if node.kind == "call":
            found += _of_node(node, analysis)
    return found


def _key(node: Node, name: str) -> int | str:
    if name in node.kwargs:
        return name
    return schema_names(node.target).index(name)


def _of_node(node: Node, analysis: Analysis) -> list[Patch]:
    axes, shapes = analysis.axes, analysis.shapes
    source = node.args[0].name if node.args and isinstance(node.args[0], Ref) else ""
    if node.packet in _SIZES:
        return _sizes(node, source, analysis)
    if node.packet in _SPLITS:
        return _split(node, analysis)
    if node.packet in _COUNTS:
        axis = axes.get((node.name, 0, len(shapes[node.name, 0]) - 1))
        more = _COUNTS[node.packet].items()
        return [] if axis is None else [Patch(node.name, _key(node, n), None, axis, offset=plus) for n, plus in more]
    if node.packet in SLICES:
        found = [
            Patch(node.name, _key(node, name), None, analysis.prefixes[node.name, name])
            for name in ("start", "end", "index")
            if (node.name, name) in analysis.prefixes and abs(argument(node, name, 0)) <= max(shapes[source, 0])
        ]
        dim = argument(node, "dim", 0)
        if node.packet == "aten.narrow" and (node.name, 0, dim) in axes:
            found.append(Patch(node.name, _key(node, "length"), None, axes[node.name, 0, dim]))
        return found
    if node.packet == "aten.group_norm" and _whole(axes.get((source, 0, 1)), argument(node, "num_groups")):
        scale = (argument(node, "num_groups"), shapes[source, 0][1])
        return [Patch(node.name, _key(node, "num_groups"), None, axes[source, 0, 1], scale)]
    groups = argument(node, "groups", 1) if node.packet.startswith(("aten.conv", "torchvision.deform")) else 1
    if isinstance(groups, int) and groups > 1:  # else one for each sample
        channel = 1 if len(shapes[source, 0]) == len(shapes[node.args[1].name, 0]) else 0
        if _whole(axes.get((source, 0, channel)), groups):
            scale = (groups, shapes[source, 0][channel])
            return [Patch(node.name, _key(node, "groups"), None, axes[source, 0, channel], scale)]
    if node.packet == "aten.scaled_dot_product_attention" and argument(node, "scale") is None:
        # The scale follows the size of a head: dimensions without weights must not change what the others do.
        whole = shapes[source, 0]
        if (source, 0, len(whole) - 1) in axes:
            node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(whole[-1])}
    if node.packet in ("aten.layer_norm", "aten.rms_norm"):
        shape = argument(node, "normalized_shape")
        first = len(shapes[source, 0]) - len(shape)
        return [
            Patch(node.name, _key(node, "normalized_shape"), i, axes[source, 0, first + i])
            for i in range(len(shape))
            if (source, 0, first + i) in axes
        ]
    return []


def _whole(axis: Axis | None, groups: int) -> bool:
    """Whether the units of an axis are whole groups of its indices, so that the number of groups follows them."""
    if axis is None or groups == 1:
        return False
    pairs = np.stack([axis.group, axis.rank]).reshape(2, groups, -1)
    return bool((pairs == pairs[:, :, :1]).all())


def _sizes(node: Node, source: str, analysis: Analysis) -> list[Patch]:
    name = _SIZES[node.packet]
    sizes: Any = argument(node, name)
    dims, shape = len(analysis.shapes[node.name, 0]), analysis.shapes.get((source, 0), ())
    offset = argument(node, "dim", 0) % len(shape) if node.packet == "aten.unflatten" else dims - len(sizes)
    found = []
    for i, size in enumerate(sizes):
        axis = analysis.axes.get((node.name, 0, offset + i))
        if axis is None or size == -1:
            continue
        if node.packet in ("aten.repeat", "aten.tile"):
            own = offset + i - (dims - len(shape))
            if own >= 0 and shape[own] > 1:
                continue  # a repeated elastic axis grows by itself
        found.append(Patch(node.name, _key(node, name), i, axis, ratio=isinstance(size, Ref)))
    return found


def _split(node: Node, analysis: Analysis) -> list[Patch]:
    dim = argument(node, "dim", 0)
    outputs = sorted(index for name, index in analysis.shapes if name == node.name)
    dim %= len(analysis.shapes[node.name, 0])
    found = [(i, analysis.axes[node.name, i, dim]) for i in outputs if (node.name, i, dim) in analysis.axes]
    if not found:
        return []
    node.target = "aten.split_with_sizes.default"
    node.args = (node.args[0], [analysis.shapes[node.name, i][dim] for i in outputs], dim)
    node.kwargs = {}
    return [Patch(node.name, 1, i, axis) for i, axis in found]
