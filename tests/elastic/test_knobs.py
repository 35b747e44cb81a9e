"""Which choices knobs get."""

from typing import Any

import pytest
import torch
from torch import nn

from pliant import nets
from pliant.core import Space
from pliant.elastic import elastic
from pliant.elastic.knobs import make_space
from pliant.graph.graph import Graph, trace
from tests.elastic.conv_nets import Audio, Large


@pytest.fixture(scope="module")
def mlp() -> Graph:
    return trace(nets.mlp((6,), 3, hidden=(16, 40, 100, 32, 33, 3, 400)), torch.randn(2, 6))


@pytest.fixture(scope="module")
def vit() -> Graph:
    return trace(nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=1, heads=4), torch.randn(2, 3, 8, 8))


def space(graph: Graph, **options: Any) -> Space:
    options = {"min_size": 4, "choices": None, **options}
    return make_space(graph, range(len(graph.groups)), **options)


def choices(graph: Graph, name: str, **options: Any) -> tuple[int, ...]:
    return space(graph, **options)[name].choices


def test_default_choices_are_quarters_rounded_to_eight_above_32_units(mlp: Graph) -> None:
    names = [f"width:body.{i}" for i in (0, 2, 4, 6, 8, 12)]
    assert [group.units for group in mlp.groups] == [16, 40, 100, 32, 33, 3, 400]
    # a quarter of 400 is 100, half-way between 96 and 104: Python rounds 12.5 to the even 12
    wanted = [(4, 8, 12, 16), (8, 16, 32, 40), (24, 48, 72, 100), (8, 16, 24, 32), (8, 16, 24, 33),
              (96, 200, 304, 400)]  # fmt: skip
    assert [choices(mlp, name) for name in names] == wanted


def test_a_knob_with_one_choice_is_left_out(mlp: Graph) -> None:
    assert "width:body.10" not in {knob.name for knob in space(mlp)}  # 3 units, of which at least 4 are kept
    assert choices(mlp, "width:body.10", min_size=1) == (1, 2, 3)


@pytest.mark.parametrize(("min_size", "wanted"), [(1, (4, 8, 12, 16)), (6, (6, 8, 12, 16)), (12, (12, 16))])
def test_min_size_lifts_small_choices(mlp: Graph, min_size: int, wanted: tuple[int, ...]) -> None:
    assert choices(mlp, "width:body.0", min_size=min_size) == wanted


def test_min_size_above_every_width_leaves_no_widths(mlp: Graph) -> None:
    assert len(space(mlp, min_size=1000)) == 0


def test_heads_go_down_to_one_whatever_min_size_is(vit: Graph) -> None:
    assert choices(vit, "heads:blocks.0.attn", min_size=16) == (1, 2, 3, 4)


def test_counts_and_shares_can_be_given_and_mixed(mlp: Graph) -> None:
    assert choices(mlp, "width:body.0", choices={"width:body.0": [16, 5, 10]}) == (5, 10, 16)
    assert choices(mlp, "width:body.0", choices={"width:body.0": [0.3, 1.0, 16, 2]}) == (2, 5, 16)
    assert choices(mlp, "width:body.4", choices={"width:body.4": (0.5, 1.0)}) == (48, 100)


def test_counts_are_taken_as_they_are_and_shares_are_floored(mlp: Graph) -> None:
    assert choices(mlp, "width:body.0", min_size=8, choices={"*": [1, 0.25, 1.0]}) == (1, 8, 16)


def test_patterns_choose_by_name_and_later_ones_win(mlp: Graph) -> None:
    rules = {"width:*": (0.5, 1.0), "width:body.[02]": (0.25, 1.0), "width:body.2": (24, 40)}
    found = space(mlp, choices=rules)
    assert found["width:body.0"].choices == (4, 16)
    assert found["width:body.2"].choices == (24, 40)
    assert found["width:body.6"].choices == (16, 32)
    swapped = space(mlp, choices={"width:body.2": (24, 40), "width:*": (0.5, 1.0)})
    assert swapped["width:body.2"].choices == (16, 40)


def test_one_choice_fixes_a_width(mlp: Graph) -> None:
    assert {knob.name for knob in space(mlp, choices={"*": [1.0], "width:body.0": [8, 16]})} == {"width:body.0"}


def test_depth_takes_flags(vit: Graph) -> None:
    assert choices(vit, "depth:blocks.0.attn") == (False, True)
    names = {knob.name for knob in space(vit, choices={"depth:*": [True]})}
    assert not any(name.startswith("depth") for name in names)
    assert "heads:blocks.0.attn" in names
    only = space(vit, choices={"depth:*": [True], "depth:blocks.0.mlp": [True, False]})
    assert [knob.name for knob in only if knob.kind == "depth"] == ["depth:blocks.0.mlp"]
    assert only["depth:blocks.0.mlp"].choices == (False, True)


def test_groups_that_may_not_bend_get_no_knob(mlp: Graph) -> None:
    found = make_space(mlp, [1, 3], min_size=4, choices=None)
    assert [knob.name for knob in found] == ["width:body.2", "width:body.6"]


def test_a_network_without_units_has_an_empty_space() -> None:
    graph = trace(nn.Linear(3, 2), torch.randn(2, 3))
    assert len(space(graph)) == 0
    assert space(graph).size == 1
    with pytest.raises(ValueError, match=r"fits no knob; knobs are \(none\)"):
        space(graph, choices={"width:*": [1.0]})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"width:nonsense": [1.0]}, ("'width:nonsense'", "fits no knob", "width:body.0")),
        ({"width:body.0": [0, 16]}, ("width:body.0", "1..16", "got 0")),
        ({"width:body.0": [17, 16]}, ("width:body.0", "1..16", "got 17")),
        ({"width:body.0": [-1, 16]}, ("1..16", "got -1")),
        ({"width:body.0": [0.0, 1.0]}, ("(0, 1]", "got 0.0")),
        ({"width:body.0": [1.5]}, ("(0, 1]", "got 1.5")),
        ({"width:body.0": [float("nan"), 1.0]}, ("(0, 1]", "got nan")),
        ({"width:body.0": [True]}, ("width:body.0", "counts or shares", "True")),
        ({"width:body.0": [4, 8]}, ("width:body.0", "must include 1.0 or 16", "[4, 8]")),
        ({"width:body.0": []}, ("width:body.0", "must include 1.0 or 16")),
    ],
)
def test_wrong_choices_are_named_in_one_line(mlp: Graph, rules: dict[str, list[Any]], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="choices") as caught:
        space(mlp, choices=rules)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_depth_must_include_true(vit: Graph) -> None:
    with pytest.raises(ValueError, match=r"depth:blocks\.0\.attn must include True"):
        space(vit, choices={"depth:*": [False]})


def test_tied_widths_are_one_knob_and_change_together() -> None:
    model = nets.resnet((1, 8, 8), 5, blocks=(3, 1), width=8)
    net = elastic(model, torch.randn(2, 1, 8, 8), tie=("width:stages.0.*", "depth:stages.0.*"))
    names = [knob.name for knob in net.space]
    assert "width:stages.0.*" in names
    assert "depth:stages.0.*" in names
    assert not any(name.startswith("width:stages.0.1") for name in names)
    small = net.extract({"width:stages.0.*": 4})
    shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    assert all(shapes[f"stages.0.{i}.conv1.weight"][0] == 4 for i in range(3))
    assert not any(name.startswith("stages.0") for name in net.extract({"depth:stages.0.*": False}).state_dict())
    assert net.cost({"width:stages.0.*": 4}).parameters == sum(p.numel() for p in small.parameters())
    row = next(row for row in net.report().groups if row.name == "width:stages.0.1.conv1")
    assert row.choices == (4, 6, 8)


def test_ties_that_fit_nothing_or_differ_in_size_are_refused(mlp: Graph) -> None:
    with pytest.raises(ValueError, match=r"tie: 'width:nothing\.\*' fits no knob"):
        space(mlp, tie=("width:nothing.*",))
    with pytest.raises(ValueError, match=r"tie: 'width:body\.\*' fits knobs of different sizes"):
        space(mlp, tie=("width:body.*",))


def test_shares_are_rounded_to_the_multiple_asked_for(mlp: Graph) -> None:
    assert choices(mlp, "width:body.4", round_to=1) == (25, 50, 75, 100)
    assert choices(mlp, "width:body.12", round_to=64) == (128, 192, 320, 400)
    with pytest.raises(ValueError, match="round_to must be at least 1, got 0"):
        elastic(nets.mlp((6,), 3), torch.randn(2, 6), round_to=0)


@pytest.fixture(scope="module")
def kernels() -> Graph:
    return trace(Large(), torch.randn(2, 3, 12, 12), asked=["kernel:*"])


def test_kernels_take_the_odd_sizes_up_to_their_own(kernels: Graph) -> None:
    given = space(kernels, choices={"kernel:*": [3, 5, 7]})
    assert {k.name: k.choices for k in given if k.kind == "kernel"} == {
        "kernel:stem": (3, 5, 7), "kernel:deep": (3, 5), "kernel:group": (3, 5),
    }  # fmt: skip


def test_only_patterns_that_name_kernels_choose_their_sizes(kernels: Graph) -> None:
    given = space(kernels, choices={"kernel:stem": [3, 7], "*:stem": [0.5, 1.0]})
    assert given["kernel:stem"].choices == (3, 7)
    assert given["width:stem"].choices == (4, 8)
    assert "kernel:deep" not in {knob.name for knob in given}


def test_kernels_of_one_size_can_be_tied(kernels: Graph) -> None:
    given = space(kernels, choices={"kernel:[dg]*": [3, 5]}, tie=["kernel:[dg]*"])
    assert [k.name for k in given if k.kind == "kernel"] == ["kernel:[dg]*"]
    with pytest.raises(ValueError, match="different sizes"):
        space(kernels, choices={"kernel:*": [3, 5, 7]}, tie=["kernel:*"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, 7], "counts, not shares, got 0.5"),
        ([True, 7], "counts, not shares, got True"),
        ([4, 7], "odd kernel sizes, got 4"),
        ([-1, 7], r"must be in 1\.\.7, got -1"),
        ([3, 5], "must include 7"),
    ],
)
def test_wrong_kernel_sizes(kernels: Graph, values: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        space(kernels, choices={"kernel:stem": values})


def test_a_size_that_padding_does_not_bear_is_refused() -> None:
    graph = trace(Audio(), torch.randn(2, 2, 20), asked=["kernel:*"])
    assert space(graph, choices={"kernel:second": [5, 7]})["kernel:second"].choices == (5, 7)
    with pytest.raises(ValueError, match=r"choices of kernel:second must be in 5\.\.7, got 3"):
        space(graph, choices={"kernel:*": [3, 7, 9]})


def test_what_cannot_bend_is_named_where_nothing_fits() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8), asked=["kernel:*"])
    with pytest.raises(ValueError, match=r"fits no knob; .*cannot bend: 0 \(kernel: its padding would go below zero\)"):
        space(graph, choices={"kernel:*": [1, 3]})
