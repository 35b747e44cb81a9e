"""Running a plan: all widths at once, one width, or one shell after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.core import make_output
from pliant.core.parts import Index, part_of
from pliant.elastic.onepass.operators import (
    PrefixHeads,
    PrefixNorm,
    Product,
    SummedHeads,
    affine,
    applied,
    joined,
    leaking,
    prefix_heads,
    prefix_norm,
    summed_heads,
)
from pliant.elastic.onepass.places import Head, Join, Mix, Norm, Step
from pliant.elastic.onepass.shells import Shells
from pliant.elastic.onepass.triangles import BandedLinear, bands_of, fits
from pliant.elastic.operators import function_of, in_place_of, method_of
from pliant.graph.ir import Named, Node, Ref
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch

Getter = Callable[[Mapping[str, Any], Sequence[int]], Any]
"""An operand from the values so far and the sizes."""


@dataclass
class Run:
    """One run.

    Args:
        shells: of the network.
        width: how many shells take part.
        alone: whether only the last of them is computed, given what `past` holds of the others.
        stacked: whether heads give out all widths, not this one alone.
        sizes: values of the graph's patches.
        tensors: masks and weights of heads by name.
        leak: share of the gradient that goes back to earlier shells.
        env: values by name.
        past: shells that were computed before, by the names of the values that are read across shells.
        joined: those with the newest one.
    """

    shells: Shells
    width: int
    alone: bool
    stacked: bool
    sizes: Sequence[int]
    tensors: Mapping[str, Tensor]
    leak: float
    env: dict[str, Any]
    past: dict[str, list[Tensor]] = field(default_factory=dict)
    joined: dict[str, Tensor] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return self.width == self.shells.count and not self.alone

    def index(self, vector: IntArray) -> Index:
        """What of an axis is computed."""
        return self.shells.index(vector, self.width, alone=self.alone)

    def read(self, vector: IntArray) -> Index:
        """What of an axis is read, in the order in which `prefix` has it."""
        if not self.alone:
            return self.shells.index(vector, self.width)
        parts = [self.shells.index(vector, j, alone=True) for j in range(1, self.width + 1)]
        runs = [part for part in parts if isinstance(part, slice)]
        if len(runs) == len(parts) and all(a.stop == b.start for a, b in pairwise(runs)):
            return slice(runs[0].start, runs[-1].stop)
        places = torch.arange(len(vector))
        return torch.cat([part_of(places, (part,)) for part in parts])

    def prefix(self, name: str, axis: int) -> Tensor:
        """A value up to the width; one shell after the other where they were computed so."""
        if not self.alone:
            there: Tensor = self.env[name]
            return there
        if name not in self.joined:
            self.past.setdefault(name, []).append(self.env[name])
            self.joined[name] = torch.cat(self.past[name], axis)
        return self.joined[name]


Runner = Callable[[Run], Any]


def runner_of(step: Step, patches: Mapping[tuple[Any, ...], tuple[int, Patch]], each: frozenset[str],
              overwrites: bool, product: tuple[Product, tuple[Any, ...] | None] | None) -> Runner:  # fmt: skip
    """What runs a step.

    Args:
        step: of a plan.
        patches: (node, argument, item) to number and patch.
        each: names of values of which there is one for each width.
        overwrites: whether the result may be written over the first operand.
        product: the operator of mixes and heads, and its settings where it is a convolution.
    """
    if isinstance(step, Norm):
        return _Normalise(step)
    if isinstance(step, Mix) and product is not None:
        return _Triangle(step, *product)
    if isinstance(step, Head) and product is not None:
        return _Widths(step, product[0], product[1])
    called = _Called(step.node, patches, overwrites and not step.each)  # columns are views of one tensor
    if isinstance(step, Join) and step.later != tuple(range(len(step.node.args[0]))):
        parts = [step.node.args[0][i] for i in step.later]
        later = _Called(replace(step.node, args=(parts, *step.node.args[1:])), patches, False)
        return lambda run: (later if run.alone and run.width > 1 else called)(run)
    if not step.each:
        return called
    several = sorted(called.reads & each)
    return lambda run: [called.of({**run.env, **dict(zip(several, one, strict=True))}, run.sizes)
                        for one in zip(*(run.env[name] for name in several), strict=True)]  # fmt: skip


class _Called:
    """A call as it is, with the sizes of the run."""

    def __init__(self, node: Node, patches: Mapping[tuple[Any, ...], tuple[int, Patch]], overwrites: bool) -> None:
        self.reads: set[str] = set()
        self._patches, self._node = patches, node
        self._args = [self._getter(value, (i,)) for i, value in enumerate(node.args)]
        self._kwargs = {name: self._getter(value, (name,)) for name, value in node.kwargs.items()}
        called: Any = in_place_of(node) if overwrites else method_of(node) or function_of(node)
        self._function: Callable[..., Any] = getattr(torch.Tensor, called) if isinstance(called, str) else called

    def __call__(self, run: Run) -> Any:
        return self.of(run.env, run.sizes)

    def of(self, env: Mapping[str, Any], sizes: Sequence[int]) -> Any:
        """The result, given values and sizes."""
        args = [get(env, sizes) for get in self._args]
        return self._function(*args, **{name: get(env, sizes) for name, get in self._kwargs.items()})

    def _getter(self, value: Any, place: tuple[int | str, ...]) -> Getter:
        patch = self._patches.get((self._node.name, place[0], place[1] if len(place) > 1 else None))
        if patch is not None:
            return self._patched(value, *patch)
        if isinstance(value, Ref):
            self.reads.add(value.name)
            name = value.name
            return lambda env, sizes: env[name]
        if isinstance(value, tuple | list):
            parts = [self._getter(item, (*place, i)) for i, item in enumerate(value)]
            kind = type(value)
            return lambda env, sizes: kind(get(env, sizes) for get in parts)
        return lambda env, sizes: value

    def _patched(self, value: Any, number: int, patch: Patch) -> Getter:
        if not patch.ratio:
            return lambda env, sizes: sizes[number]
        whole, own = len(patch.axis.group), self._getter(value, (-1,))
        return lambda env, sizes: own(env, sizes) * sizes[number] // whole


class _Triangle:
    """A block-triangular linear operator."""

    def __init__(self, step: Mix, product: Product, settings: tuple[Any, ...] | None) -> None:
        self._step, self._product, self._settings = step, product, settings
        self._bands = bands_of(step.into, step.out_of) if product is F.linear else None

    def __call__(self, run: Run) -> Tensor:
        step = self._step
        weight, mask = run.env[step.weight], run.tensors[f"mask {step.node.name}"]
        bias = None if step.bias is None else run.env[step.bias]
        if self._bands is not None and run.whole and torch.is_grad_enabled() and fits(run.env[step.x]):
            leak = None if run.leak == 1 else run.tensors[f"back {step.node.name}"]
            return applied(BandedLinear, run.env[step.x], weight, bias, mask, leak, self._bands)
        if not run.whole:
            index: list[Index] = [slice(None), slice(None)]
            index[step.layout[0]], index[step.layout[1]] = run.index(step.out_of), run.read(step.into)
            weight, mask = part_of(weight, index), part_of(mask, index)
        x = run.prefix(step.x, step.axis)
        weight = weight if run.alone else weight * mask  # the newest shell reads all that there is
        if run.leak == 1 or not torch.is_grad_enabled():
            return self._product(x, weight, bias)
        back = run.tensors[f"back {step.node.name}"]
        back = back if run.whole else part_of(back, index)
        return _biased(leaking(self._product, x, weight, back, self._settings), bias, step.axis)


class Columns(list[Tensor]):
    """One value for each width, and all of them as one tensor [S, ...]."""

    def __init__(self, stacked: Tensor) -> None:
        super().__init__(stacked.unbind(0))
        self.stacked = stacked


class _Widths:
    """A head: one result for each width."""

    def __init__(self, step: Head, product: Product, settings: tuple[Any, ...] | None) -> None:
        self._step, self._product, self._settings = step, product, settings
        self._sorted = bool((np.diff(step.into) >= 0).all())
        self._ends = np.cumsum(np.bincount(step.into)[1:]).tolist()

    def __call__(self, run: Run) -> list[Tensor]:
        step = self._step
        weight, x = run.tensors[step.weight], run.prefix(step.x, step.axis)
        bias = None if step.bias is None else run.tensors[step.bias]
        mask = run.tensors[f"mask {step.node.name}"]  # as the weights of all widths [S, ...], 1 along the outputs
        exact = run.leak == 1 or not torch.is_grad_enabled()
        if not run.stacked:
            part = weight[run.width - 1] if weight.dim() == mask.dim() else weight
            index: list[Index] = [slice(None), slice(None)]
            index[step.layout[1]] = run.read(step.into)
            return [self._product(x, part_of(part, index), None if bias is None else bias[run.width - 1])]
        if self._sorted and self._product is F.linear:
            return Columns(self._prefixes(run, x, weight, bias))
        weights = joined(weight * mask, step.layout[0])
        flat = None if bias is None else bias.flatten()
        if exact:
            made = self._product(x, weights, flat)
        else:
            back = joined(run.tensors[f"back {step.node.name}"].expand_as(weight * mask), step.layout[0])
            made = _biased(leaking(self._product, x, weights, back, self._settings), flat, step.axis)
        axis = step.axis % made.dim()
        rows = made.reshape(*made.shape[:axis], run.shells.count, -1, *made.shape[axis + 1 :])
        return Columns(rows.movedim(axis, 0))

    def _prefixes(self, run: Run, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Columns of a head whose prefixes can be cut out."""
        own = weight.dim() > 2
        if not torch.is_grad_enabled():
            return (prefix_heads if own else summed_heads)(x, weight, bias, self._ends)
        if own:
            back = None if run.leak == 1 else run.tensors[f"back {self._step.node.name}"]
            return applied(PrefixHeads, x, weight, bias, back, self._ends)
        return applied(SummedHeads, x, weight, bias, run.leak, self._ends)


def _biased(made: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    return made if bias is None else made + bias.reshape([-1, *[1] * (made.dim() - 1 - axis % made.dim())])


class _Normalise:
    """A normalisation by prefix statistics."""

    def __init__(self, step: Norm) -> None:
        self._step = step

    def __call__(self, run: Run) -> Tensor:
        step = self._step
        shells, shares, back = (run.tensors[f"{what} {step.node.name}"] for what in ("shells", "shares", "back"))
        weight, bias = (None if name is None else run.env[name] for name in (step.weight, step.bias))
        x, even = run.prefix(step.x, -1), step.even
        if not run.whole:
            even = even or run.width == 1
            shells = part_of(shells[: run.width], (slice(None), run.read(step.into)))
            shares, back = shares[: run.width, : run.width], back[: run.width, : run.width]
        if torch.is_grad_enabled():
            return applied(PrefixNorm, x, shells, shares, back, weight, bias, (step.eps, step.centred, even))
        if not run.alone:
            return prefix_norm(x, shells, shares, weight, bias, step.eps, step.centred, even)
        newest = run.env[step.x].shape[-1]
        y = prefix_norm(x, shells, shares, None, None, step.eps, step.centred, even)
        return affine(y[..., x.shape[-1] - newest :], weight, bias)


def picked(value: Any, env: Mapping[str, Any], pick: Callable[[Any], Any]) -> Any:
    """An output structure with the values in their places."""
    if isinstance(value, Ref):
        return pick(env[value.name])
    if isinstance(value, Named):
        return make_output(value.keys, *(picked(item, env, pick) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(picked(item, env, pick) for item in value)
    if isinstance(value, dict):
        return {key: picked(item, env, pick) for key, item in value.items()}
    return value
