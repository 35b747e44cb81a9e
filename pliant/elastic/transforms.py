"""Kernel transforms: matrices that turn the centre of a kernel into a smaller kernel.

The centre of a 7x7 kernel has to serve as its middle and, cut out, as a 5x5 kernel. Once-for-All (Cai et al. 2019,
arXiv:1908.09791, section 3.3) lets it be both: for every size below the whole one a layer has a matrix, shared by its
channels, that is applied to the flattened centre crop of the next larger kernel. They start as identities, which makes
a smaller kernel a plain crop until they are trained.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.elastic.extract import attach, parameter_of
from pliant.elastic.slicing import Slice, take
from pliant.graph.graph import Graph
from pliant.graph.labels import IntArray

PREFIX = "kernel_transforms"


@dataclass(frozen=True)
class _Chain:
    """One kernel: its group, its sizes from the whole one down, and its matrices for all but the whole one."""

    group: int
    sizes: tuple[int, ...]
    matrices: tuple[str, ...]

    def used(self, counts: IntArray) -> list[tuple[int, str]]:
        """Size and matrix of every step down to the kept size."""
        kept = counts[self.group]
        return [(size, name) for size, name in zip(self.sizes[1:], self.matrices, strict=True) if size >= kept]


class Transforms:
    """The matrices of a network, which are parameters of its root: here are only their names.

    Args:
        root: where they are attached, under `kernel_transforms.<module>.to<size>`: float [size^d, size^d] for d spatial
            axes.
        graph: the traced network.
        choices: kernel sizes to choose from by group, ascending; groups with one size have no matrices.
    """

    def __init__(self, root: nn.Module, graph: Graph, choices: Mapping[int, Sequence[int]]) -> None:
        self._chains: dict[str, _Chain] = {}
        self.names: list[str] = []
        for group, ascending in choices.items():
            states = sorted({name for name, _ in graph.groups[group].where})
            weight = graph.states[states[0]]
            sizes = tuple(sorted(ascending, reverse=True))
            path = graph.groups[group].name.partition(":")[2].replace("#", "_")
            chain = _Chain(group, sizes, tuple(f"{PREFIX}.{path}.to{size}" for size in sizes[1:]))
            for size, name in zip(sizes[1:], chain.matrices, strict=True):
                eye = torch.eye(size ** (weight.dim() - 2), dtype=weight.dtype, device=weight.device)
                attach(root, name, nn.Parameter(eye))
            self._chains.update(dict.fromkeys(states, chain))
            self.names += chain.matrices

    def __contains__(self, state: str) -> bool:
        return state in self._chains

    def cropped(self, counts: IntArray, states: Container[str]) -> list[str]:
        """Those of these states that the kept counts make smaller."""
        return [state for state, chain in self._chains.items() if state in states and chain.used(counts)]

    def used(self, counts: IntArray, states: Container[str]) -> set[str]:
        """The matrices that these states go through."""
        return {name for state in self.cropped(counts, states) for _, name in self._chains[state].used(counts)}

    def read(self, counts: IntArray) -> IntArray:
        """The taps that are read for these kept counts: a smaller kernel is made of all of the next to largest."""
        counts = counts.copy()
        for chain in self._chains.values():
            if chain.used(counts):
                counts[chain.group] = chain.sizes[1]
        return counts

    def trained(self, root: nn.Module, state: str, counts: IntArray) -> bool:
        """Whether a weight is more than a crop: one of the matrices it goes through is no identity."""
        chain = self._chains.get(state)
        matrices = [parameter_of(root, name) for _, name in chain.used(counts)] if chain is not None else []
        return any(not torch.equal(m, torch.eye(len(m), dtype=m.dtype, device=m.device)) for m in matrices)

    def part(self, root: nn.Module, state: str, whole: Tensor, cut: Slice, counts: IntArray) -> Tensor:
        """The smaller kernel of a weight [out, in, k, ...] whose cut takes its channels. Differentiable."""
        weight, dims = take(whole, cut[:2]), whole.dim() - 2
        for size, name in self._chains[state].used(counts):
            begin = (weight.shape[2] - size) // 2
            for axis in range(2, 2 + dims):
                weight = weight.narrow(axis, begin, size)
            flat = weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:]))
            weight = F.linear(flat, parameter_of(root, name)).reshape(weight.shape)
        return weight
