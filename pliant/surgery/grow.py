"""Growing: wider and deeper networks that compute what the small one did (Net2Net, Chen et al. 2016, arXiv:1511.05641).

Both are thin compositions of the other operations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.graph.graph import Graph
from pliant.graph.ir import Node, Program, refs, resolve_target
from pliant.surgery.program import place_of, run_node, values
from pliant.surgery.spans import insert, repeat
from pliant.surgery.units import group_index, split


def widen(graph: Graph, units: Mapping[str, int], *, generator: torch.Generator, noise: float = 0.0) -> Graph:
    """The same function with more units in some groups: Net2WiderNet.

    Where the new number is a multiple of the old one, all units are copied equally often, which also holds under layer
    normalisation; else those that are copied are drawn.

    Args:
        graph: a traced network; it is not changed.
        units: how many units each group has afterwards.
        generator: of the draw and the noise.
        noise: as in `split`.

    Raises:
        ValueError: an unknown group, or fewer units than there are.
        PliantError: the network combines these units in a way that copies would change.
    """
    shares: dict[str, dict[int, list[float]]] = {}
    for name, wanted in units.items():
        n = graph.groups[group_index(graph, name)].units
        if wanted < n:
            raise ValueError(f"{name} has {n} units, cannot widen it to {wanted}")
        whole = wanted % n == 0
        drawn = (
            np.tile(np.arange(n), wanted // n - 1) if whole else torch.randint(n, (wanted - n,), generator=generator)
        )
        times = 1 + np.bincount(np.asarray(drawn), minlength=n)
        shares[name] = {u: [1 / int(k)] * int(k) for u, k in enumerate(times) if k > 1}
    return split(graph, shares, noise=noise, generator=generator)


def deepen(graph: Graph, places: Sequence[str]) -> Graph:
    """The same function with more layers: Net2DeeperNet.

    A span is repeated once with a branch that starts at zero. Any other place (a module path, a node) must end in an
    activation that changes nothing the second time (ReLU); a linear layer or a convolution of three taps follows it
    that starts as the identity, and that activation once more.

    Raises:
        ValueError: no such place.
        PliantError: the identity does not survive the activation there.
    """
    for place in [places] if isinstance(places, str) else places:
        graph = repeat(graph, {place: 1}) if place in graph.span_names else _identity_behind(graph, place)
    return graph


def _identity_behind(graph: Graph, at: str) -> Graph:
    place = place_of(graph, at)
    node = next(node for node in graph.program if node.name == place)
    value = values(graph, [place])[place]
    operands = list(refs((node.args, node.kwargs)))
    again = None
    if len(operands) == 1 and _pointwise(node):
        again = run_node(graph.program, node, {operands[0].name: value})
    if again is None or not torch.equal(again, value):
        raise PliantError("an identity layer only fits behind an activation that changes nothing the second time",
                          where=at, fix="name a span, or the ReLU behind a layer")  # fmt: skip
    axes = [axis for axis in range(1, value.dim()) if (place, 0, axis) in graph.analysis.axes]
    axis = axes[0] if len(axes) == 1 else 1 if value.dim() > 3 else value.dim() - 1
    layer = _identity(value.shape[axis], value.dim() - 2 if axis < value.dim() - 1 else 0).to(value)
    part = _Layer(graph.program, layer, node)
    return insert(graph, {at: part}, residual=False, prefix=f"{node.module or node.name}_deeper")


def _pointwise(node: Node) -> bool:
    return node.kind == "call" and torch.Tag.pointwise in getattr(resolve_target(node.target), "tags", ())


def _identity(width: int, space: int) -> nn.Module:
    """A linear map over the last axis, or a convolution over axis 1 with `space` spatial axes, that changes nothing."""
    layer: Any
    if not space:
        layer = nn.Linear(width, width)
        nn.init.eye_(layer.weight)
    else:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1](width, width, 3, padding=1)
        nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """A layer and an activation as the network writes it."""

    def __init__(self, program: Program, layer: nn.Module, node: Node) -> None:
        super().__init__()
        self.layer = layer
        self._program, self._node = program, node

    def forward(self, x: Tensor) -> Any:
        first = next(refs((self._node.args, self._node.kwargs)))
        return run_node(self._program, self._node, {first.name: self.layer(x)})
