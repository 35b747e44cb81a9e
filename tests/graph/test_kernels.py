"""Kernels in the graph: which convolutions bend, what follows them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pliant.graph.graph import Graph, Group, trace
from tests.elastic.conv_nets import Audio, Large

IMAGES = torch.randn(2, 3, 12, 12)


def kernels(net: nn.Module, example: Any = IMAGES, asked: str = "kernel:*") -> dict[str, Group]:
    return {g.name: g for g in trace(net, example, asked=[asked]).groups if g.kind == "kernel"}


def reasons(net: nn.Module, example: Any = IMAGES) -> str:
    return "; ".join(f"{r.module}: {r.reason}" for r in trace(net, example, asked=["kernel:*"]).rigid)


def test_without_being_asked_no_kernel_bends() -> None:
    graph = trace(Large(), IMAGES, asked=["*", "[!d]*", "width:*", "*:stem"])
    assert not [group for group in graph.groups if group.kind == "kernel"]


def test_a_pattern_chooses_convolutions() -> None:
    assert list(kernels(Large(), asked="kernel:s*")) == ["kernel:stem", "kernel:same"]


def test_every_kind_of_convolution_that_can_bend_does() -> None:
    found = kernels(Large())
    assert {name: group.units for name, group in found.items()} == {
        "kernel:stem": 7, "kernel:deep": 5, "kernel:group": 5, "kernel:same": 3,
    }  # fmt: skip
    assert all(group.ordered and group.floor == 1 for group in found.values())
    assert found["kernel:deep"].where == (("deep.weight", 2), ("deep.weight", 3))


def test_the_other_groups_are_those_of_the_plain_trace() -> None:
    plain, asked = trace(Large(), IMAGES), trace(Large(), IMAGES, asked=["kernel:*"])
    assert asked.groups[: len(plain.groups)] == plain.groups
    assert not any(group.ordered for group in plain.groups)


@pytest.mark.parametrize("kept", [1, 3, 5, 7])
def test_taps_are_kept_from_the_centre_and_padding_follows(kept: int) -> None:
    graph = trace(Large(), IMAGES, asked=["kernel:stem"])
    group = next(i for i, g in enumerate(graph.groups) if g.kind == "kernel")
    counts = graph.counts({group: kept})
    for axis in (2, 3):
        taps = graph.state_axes["stem.weight"][axis].kept(counts).nonzero()[0]
        assert taps.tolist() == list(range(3 - kept // 2, 4 + kept // 2))
    assert [patch.value(counts) for patch in graph.patches if patch.axis.group[0] == group] == [kept // 2] * 2


def test_padding_by_dilation() -> None:
    graph = trace(Large(), IMAGES, asked=["kernel:deep"])
    group = next(i for i, g in enumerate(graph.groups) if g.kind == "kernel")
    mine = [patch for patch in graph.patches if patch.axis.group[0] == group]
    assert [[patch.value(graph.counts({group: kept})) for kept in (1, 3, 5)] for patch in mine] == [[0, 2, 4]] * 2


def test_little_padding_lifts_the_floor() -> None:
    found = kernels(Audio(), torch.randn(2, 2, 20))
    assert {name: group.floor for name, group in found.items()} == {"kernel:first": 1, "kernel:second": 5}


class Odd(nn.Module):
    """What cannot bend."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(3, 4, 4, padding=2)
        self.oblong = nn.Conv2d(4, 4, (3, 5), padding=(1, 2))
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.bare = nn.Conv2d(4, 4, 3)
        self.mirror = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.normed = weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.named = nn.Conv2d(4, 4, 3, padding="valid")
        self.table = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.register_buffer("blur", torch.ones(4, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N]."""
        x = self.up(self.oblong(self.even(x)))
        x = self.named(self.normed(self.mirror(self.bare(x))))
        x = F.conv2d(x, self.get_buffer("blur"), padding=1, groups=4)
        return F.conv2d(x, self.table, padding=1).mean((1, 2, 3)) + self.table.abs().sum()


def test_what_cannot_bend_says_why() -> None:
    text = reasons(Odd())
    assert not kernels(Odd())
    for part in (
        "even: kernel: its size 4x4 is not odd", "oblong: kernel: its size 3x5", "bare: kernel: its padding would go",
        "mirror: kernel: its padding would go", "named: kernel: its padding would go",
        "normed: kernel: its weight is computed", "kernel: its weight is no parameter",
        "kernel: its weight also goes into aten.abs",
    ):  # fmt: skip
        assert part in text, (part, text)


def flops(graph: Graph, kept: dict[str, int]) -> int:
    index = {group.name: i for i, group in enumerate(graph.groups)}
    cost = graph.cost(graph.counts({index[name]: n for name, n in kept.items()}), (True,) * len(graph.spans))
    return cost.flops


def test_cost_follows_the_taps() -> None:
    graph = trace(Large(), IMAGES, asked=["kernel:*"])
    small = trace(Large((3, 3, 1, 1)), IMAGES)
    kept = {"kernel:stem": 3, "kernel:deep": 3, "kernel:group": 1, "kernel:same": 1}
    assert flops(graph, {}) == flops(trace(Large(), IMAGES), {})
    assert flops(graph, kept) == flops(small, {})
    widths = {"width:stem": 4, "width:point": 5}
    assert flops(graph, kept | widths) == flops(small, widths)
