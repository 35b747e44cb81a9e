"""Sizes: inputs that are made smaller before the network sees them.

A resolution or a length bends by operators in front of the network: its images are resized, its sequences cut. The
program is traced with these axes free, so that everything behind follows by itself, and every sub-network takes the
same full-size input. They bend only where they are asked for, and change what a network computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from pliant.core import PliantError, tensors_of
from pliant.core.forms import Form
from pliant.graph.analyse import Analysis, Axis, Rigid, multiply_accumulates
from pliant.graph.ir import Node, Program, Ref, evaluated, substitute
from pliant.graph.kernels import is_asked
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch

KINDS = ("resolution", "length")
_RESIZE, _CUT = "aten._upsample_bilinear2d_aa.default", "aten.slice.Tensor"


@dataclass(frozen=True)
class Size:
    """An input axis (or two) that bends, under a name: `resolution:<input>` or `length:<first input>`."""

    name: str
    input: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def find_sizes(model: nn.Module, example: Any, asked: Sequence[str]) -> tuple[list[Size], list[Rigid]]:
    """The inputs whose size was asked to bend, and why others that were asked for cannot.

    A resolution is that of a square image, float [N, C, H, W] or [N, C, D, H, W]. A length is axis 1 of [N, T] or
    [N, T, C]; inputs that fit one pattern and are equally long share it.
    """
    found: list[Size] = []
    refused: list[Rigid] = []
    if not any(pattern.startswith(tuple(f"{kind}:" for kind in KINDS)) for pattern in asked):
        return found, refused
    form, values = Form.of(model.forward, example)
    tensors = dict(zip(form.names, values, strict=True))
    for name, tensor in tensors.items():
        if is_asked(f"resolution:{name}", asked):
            *_, height, width = (0, 1, *tensor.shape)
            if tensor.dim() in (4, 5) and tensor.is_floating_point() and height == width > 1:
                axes = (tensor.dim() - 2, tensor.dim() - 1)
                found.append(Size(f"resolution:{name}", name, axes, tuple(tensor.shape)))
            else:
                refused.append(Rigid("", name, "", "resolution: it is no square image [N, C, H, W] of floats"))
    for pattern in asked:
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            if not is_asked(f"length:{name}", [pattern]) or any(size.input == name for size in found):
                continue
            if tensor.dim() in (2, 3) and tensor.shape[1] > 1:
                knob = first.setdefault(tensor.shape[1], f"length:{name}")
                found.append(Size(knob, name, (1,), tuple(tensor.shape)))
            else:
                refused.append(Rigid("", name, "", "length: it is no sequence [N, T] or [N, T, C]"))
    return found, refused


def explained(error: PliantError, sizes: Sequence[Size], example: Any) -> PliantError:
    """An error of the trace, with the way out where an input of the same length was forgotten."""
    cut = {size.shape[1] for size in sizes if size.name.startswith("length:")}
    same = [tensor for tensor in tensors_of(example) if tensor.dim() > 1 and tensor.shape[1] in cut]
    if len(same) <= sum(size.name.startswith("length:") for size in sizes):
        return error
    fix = "name every input of that length, as `length:*` does; else leave this size as it is"
    return PliantError(error.problem, where=error.where, fix=fix)


def with_sizes(program: Program, sizes: Sequence[Size]) -> Program:
    """The program with its inputs resized or cut; the new nodes carry the knob's name in place of a module path."""
    nodes: list[Node] = []
    renamed: dict[str, str] = {}

    def new(ref: Ref) -> Ref:
        return Ref(renamed.get(ref.name, ref.name))

    for node in program:
        args, kwargs = substitute((node.args, node.kwargs), new)
        nodes.append(replace(node, args=args, kwargs=kwargs))
        for size in sizes:
            if node.kind == "input" and node.target == size.input:
                added = _nodes(size, node.name)
                nodes += added
                renamed[node.name] = added[-1].name
    return replace(program, nodes=nodes, output=substitute(program.output, new))


def _nodes(size: Size, source: str) -> list[Node]:
    kind, whole = size.name.partition(":")[0], size.shape[size.axes[0]]
    name = f"{source}_{kind}"
    if kind == "length":
        return [Node(name, "call", _CUT, (Ref(source), 1, 0, whole), module=size.name)]
    deep = len(size.shape) == 5
    resized = Node(name, "call", _RESIZE, (Ref(f"{name}_flat" if deep else source), [whole, whole], False, None, None),
                   module=size.name)  # fmt: skip
    if not deep:
        return [resized]
    flat = Node(f"{name}_flat", "call", "aten.flatten.using_ints", (Ref(source), 1, 2), module=size.name)
    back = (Ref(name), 1, list(size.shape[1:3]))
    return [flat, resized, Node(f"{name}_deep", "call", "aten.unflatten.int", back, module=size.name)]


def bend_sizes(program: Program, analysis: Analysis) -> tuple[dict[int, str], list[Patch]]:
    """Enter the sizes of a program into its analysis: group to knob name, and the numbers that follow."""
    groups: dict[str, Axis] = {}
    names: dict[int, str] = {}
    patches: list[Patch] = []
    for node in program:
        kind = node.module.partition(":")[0]
        if node.kind != "call" or kind not in KINDS or node.target not in (_RESIZE, _CUT) or ":" not in node.module:
            continue
        if node.module not in groups:
            group = len(analysis.units)
            whole = analysis.shapes[node.name, 0][1 if kind == "length" else -1]
            groups[node.module] = Axis(np.full(whole, group, dtype=np.int64), np.arange(whole))
            names[group] = node.module
            analysis.units.append(whole)
        axis = groups[node.module]
        patches += [Patch(node.name, 3, None, axis)] if kind == "length" else [
            Patch(node.name, 1, item, axis) for item in (0, 1)
        ]  # fmt: skip
    return names, patches


def cost_scales(program: Program, analysis: Analysis, states: Mapping[str, Tensor], inputs: list[Any],
                patches: Sequence[Patch], counts: IntArray) -> list[float]:  # fmt: skip
    """What each entry of `analysis.macs` is multiplied by at other sizes, from one more run of the program.

    Sizes and units are independent: no size is an axis of units, so that one factor holds for all kept counts.

    Raises:
        PliantError: the network does not run at these sizes, or as another network.
    """
    numbers = {(patch.node, patch.item): (patch.key, patch.value(counts)) for patch in patches}
    nodes = []
    for node in program:
        args = list(node.args)
        for (name, item), (key, value) in numbers.items():
            if name == node.name and isinstance(key, int):
                args[key] = value if item is None else [value if i == item else old for i, old in enumerate(args[key])]
        nodes.append(replace(node, args=tuple(args)))
    here = {name: tensor.detach().cpu() for name, tensor in states.items()}  # the network may have moved since
    values = [value.cpu() if isinstance(value, Tensor) else value for value in inputs]
    now = multiply_accumulates(evaluated(replace(program, nodes=nodes)), here, values)
    if [name for name, _ in now] != [name for name, _, _ in analysis.macs]:
        raise PliantError("the network runs other products at this size, so that its cost is not known")
    whole = [constant * float(np.prod([len(axis.group) for axis in axes])) for _, constant, axes in analysis.macs]
    return [after / before if before else 1.0 for (_, after), before in zip(now, whole, strict=True)]
