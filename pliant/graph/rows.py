"""Rows: a traced network at another batch size, and numbers in it that should have followed the batch.

Export writes the example's batch size into some programs as a number (open slice ends, `repeat_interleave` with
`output_size`). Two exports at different sizes show which numbers these are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pliant.core.forms import leaves_of
from pliant.graph.ir import TRAINING, Node, Program, Ref, callable_of, substitute


def run(program: Program, states: Mapping[str, Tensor], inputs: Sequence[Any]) -> Any:
    """The output of a program in evaluation mode, call by call.

    Args:
        program: what to run.
        states: parameters, buffers and constants by name.
        inputs: one for each input node.
    """
    waiting = list(inputs)
    values: dict[str, Any] = {TRAINING: False}
    for node in program:
        if node.kind == "input":
            values[node.name] = waiting.pop(0)
        elif node.kind == "state":
            values[node.name] = states[node.target]
        elif not node.live:
            args, kwargs = substitute((node.args, node.kwargs), lambda ref: values.get(ref.name))
            values[node.name] = callable_of(program, node)(*args, **kwargs)
    return substitute(program.output, lambda ref: values[ref.name])


def agree(first: Any, second: Any, tolerance: float = 1e-3) -> bool:
    """Whether two outputs hold the same tensors, up to rounding."""
    pairs = list(zip(leaves_of(first), leaves_of(second), strict=False))
    return len(leaves_of(first)) == len(leaves_of(second)) and all(
        isinstance(b, Tensor) and a.shape == b.shape and _close(a, b, tolerance) if isinstance(a, Tensor) else a == b
        for a, b in pairs
    )


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    scale = float(second.abs().max()) if second.numel() else 1.0
    if math.isfinite(scale):
        return not second.numel() or float((first - second).abs().max()) <= tolerance * max(scale, 1e-6)
    scale = float(second[second.isfinite()].abs().max()) if bool(second.isfinite().any()) else 1.0
    return torch.allclose(first, second, rtol=0.0, atol=tolerance * max(scale, 1e-6), equal_nan=True)


def mend(program: Program, other: Program, rows: int) -> Program | None:
    """The program with every number that differs in `other` written as a function of the rows of its first input.

    Args:
        program: traced at `rows` rows.
        other: traced at one row more.
        rows: at least two.

    Returns:
        None where the two differ in more than numbers.
    """
    if [(n.kind, n.target) for n in program] != [(n.kind, n.target) for n in other]:
        return None
    mender = _Mender(program, other, rows)
    nodes: list[Node] = []
    for mine, its in zip(program, other, strict=True):
        mender.added = nodes
        args, kwargs = mender.value((mine.args, mine.kwargs), (its.args, its.kwargs))
        nodes.append(replace(mine, args=args, kwargs=kwargs))
    return None if mender.lost else replace(program, nodes=nodes)


class _Mender:
    def __init__(self, program: Program, other: Program, rows: int) -> None:
        self.rows, self.first = rows, program.inputs[0].name
        self.names = {its.name: mine.name for mine, its in zip(program, other, strict=True)}
        self.made: dict[tuple[int, int], Ref] = {}
        self.added: list[Node] = []
        self.lost = False

    def value(self, mine: Any, its: Any) -> Any:
        if isinstance(mine, Ref) and isinstance(its, Ref) and self.names.get(its.name, its.name) == mine.name:
            return mine
        if isinstance(mine, tuple | list) and isinstance(its, tuple | list) and len(mine) == len(its):
            return type(mine)(self.value(a, b) for a, b in zip(mine, its, strict=True))
        if isinstance(mine, dict) and isinstance(its, dict) and mine.keys() == its.keys():
            return {key: self.value(item, its[key]) for key, item in mine.items()}
        if type(mine) is int and type(its) is int and mine != its:
            step = its - mine
            return self._number(step, mine - step * self.rows)
        self.lost |= type(mine) is not type(its) or mine != its
        return mine

    def _number(self, step: int, base: int) -> Ref:
        """`step` times the rows plus `base`."""
        if (step, base) not in self.made:
            ref = self._call("aten.sym_size.int", Ref(self.first), 0)
            ref = ref if step == 1 else self._call("operator.mul", ref, step)
            self.made[step, base] = ref if base == 0 else self._call("operator.add", ref, base)
        return self.made[step, base]

    def _call(self, target: str, *args: Any) -> Ref:
        self.added.append(Node(f"rows_{len(self.added)}", "call", target, args))
        return Ref(self.added[-1].name)
