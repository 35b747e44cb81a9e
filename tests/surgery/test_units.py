"""Surgery on units, held against networks that are put together by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import surgery
from pliant.core import PliantError, Selection
from pliant.elastic import elastic, to_module
from pliant.graph import Graph, trace
from tests.graph.tiny import Tiny, weight


def gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())


def two_layers(width: int = 4) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def run(graph: Graph, *inputs: Tensor, training: bool = False) -> Any:
    with torch.no_grad():
        return to_module(graph).train(training)(*inputs)


def tiny(f: Any, **parts: Any) -> Any:
    torch.manual_seed(0)
    return Tiny(f, parts)


def test_permute_moves_rows_and_columns_and_nothing_else(x: Tensor) -> None:
    net = two_layers()
    graph = trace(net, x)
    before = {name: tensor.clone() for name, tensor in graph.states.items()}
    moved = surgery.permute(graph, {"width:0": [2, 0, 3, 1]})
    assert torch.equal(moved.states["0.weight"], net[0].weight[[2, 0, 3, 1]])
    assert torch.equal(moved.states["0.bias"], net[0].bias[[2, 0, 3, 1]])
    assert torch.equal(moved.states["2.weight"], net[2].weight[:, [2, 0, 3, 1]])
    assert moved.states["2.bias"] is graph.states["2.bias"], "what does not change is shared"
    assert all(torch.equal(before[name], graph.states[name]) for name in before)
    assert graph.states["0.weight"] is net[0].weight
    assert gap(run(moved, x), net(x)) < 1e-6


def test_remove_is_the_narrower_module_filled_by_hand(x: Tensor) -> None:
    net, small = two_layers(), two_layers(2)
    with torch.no_grad():
        small[0].weight.copy_(net[0].weight[[1, 3]])
        small[0].bias.copy_(net[0].bias[[1, 3]])
        small[2].weight.copy_(net[2].weight[:, [1, 3]])
        small[2].bias.copy_(net[2].bias)
    graph = trace(net, x)
    for kept in ({"width:0": [3, 1]}, Selection({"width:0": [1, 3]})):
        made = to_module(surgery.remove(graph, kept))
        assert {name: tensor.shape for name, tensor in made.state_dict().items()} == {
            name: tensor.shape for name, tensor in small.state_dict().items()
        }
        assert torch.equal(made(x), small(x))


def test_duplicate_is_net2wider(x: Tensor) -> None:
    net = two_layers()
    wide = surgery.duplicate(trace(net, x), {"width:0": [1, 1, 3]})
    source, times = [0, 1, 2, 3, 1, 1, 3], torch.tensor([1, 3, 1, 2, 3, 3, 2])
    assert torch.equal(wide.states["0.weight"], net[0].weight[source])
    assert torch.equal(wide.states["0.bias"], net[0].bias[source])
    assert torch.allclose(wide.states["2.weight"], net[2].weight[:, source] / times)
    assert torch.equal(wide.states["2.bias"], net[2].bias)
    assert isinstance(wide.states["0.weight"], nn.Parameter)
    assert [group.units for group in wide.groups] == [7]
    assert gap(run(wide, x), net(x)) < 1e-6


def test_split_gives_the_shares_and_merge_takes_it_back(x: Tensor) -> None:
    net = two_layers()
    graph = trace(net, x)
    parts = surgery.split(graph, {"width:0": {2: [0.5, 0.75, -0.25]}})
    wanted = net[2].weight[:, [2]] * torch.tensor([0.5, 0.75, -0.25])
    assert torch.allclose(parts.states["2.weight"][:, [2, 4, 5]], wanted)
    assert gap(run(parts, x), net(x)) < 1e-6
    back = surgery.merge(parts, {"width:0": [[2, 4, 5]]})
    assert [group.units for group in back.groups] == [4]
    for name, tensor in graph.states.items():
        assert torch.allclose(back.states[name], tensor, atol=1e-7), name


def test_noise_breaks_the_symmetry_of_parts_alone(x: Tensor) -> None:
    graph = trace(two_layers(), x)
    noisy = [
        surgery.split(graph, {"width:0": {2: [0.5, 0.5]}}, noise=0.1, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    rows = noisy[0].states["0.weight"]
    assert not torch.equal(rows[2], rows[4])
    assert torch.equal(rows[:2], graph.states["0.weight"][:2])
    assert torch.equal(noisy[0].states["0.bias"][[2]], graph.states["0.bias"][[2]]), "vectors get none"
    assert torch.equal(rows, noisy[1].states["0.weight"])
    assert not torch.equal(rows, noisy[2].states["0.weight"])
    with pytest.raises(ValueError, match="noise needs a generator"):
        surgery.split(graph, {"width:0": {2: [0.5, 0.5]}}, noise=0.1)


def test_merge_averages_what_makes_and_sums_what_reads(x: Tensor) -> None:
    net = two_layers()
    graph = trace(net, x)
    merged = surgery.merge(graph, {"width:0": [[3, 0]]}, weights={"width:0": [3.0, 1.0, 1.0, 1.0]})
    assert torch.allclose(merged.states["0.weight"][0], 0.75 * net[0].weight[0] + 0.25 * net[0].weight[3])
    assert torch.allclose(merged.states["2.weight"][:, 0], net[2].weight[:, 0] + net[2].weight[:, 3])
    assert torch.equal(merged.states["0.weight"][1:], net[0].weight[1:3])


def test_appended_units_are_drawn_and_not_read(x: Tensor) -> None:
    net = two_layers()
    graph = trace(net, x)
    wide, again = (surgery.append(graph, {"width:0": 3}, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(wide.states["2.weight"][:, 4:], torch.zeros(2, 3))
    assert wide.states["0.weight"][4:].std() > 0.1
    assert torch.allclose(wide.states["0.bias"][4:], net[0].bias.mean())
    assert gap(run(wide, x), net(x)) < 1e-6
    assert all(torch.equal(wide.states[name], again.states[name]) for name in wide.states)


class Norms(nn.Module):
    """Convolutions, batch normalisation with statistics, depthwise and grouped convolutions, flattening, a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6)
        self.other = nn.Conv2d(2, 4, 5)
        self.fc = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.deep(F.relu(self.norm(self.first(x)))), self.other(x)], 1)
        out: Tensor = self.fc(both.flatten(1))
        return out


def test_copies_go_through_statistics_depthwise_convolutions_and_joined_axes() -> None:
    torch.manual_seed(0)
    net: Any = Norms()
    x = torch.randn(4, 2, 6, 6)
    net(x)  # statistics that are not constant
    graph = trace(net, x)
    names = [group.name for group in graph.groups]
    wide = surgery.duplicate(graph, {names[0]: [5, 0], names[1]: [1]})
    assert wide.states["deep.weight"].shape == (8, 1, 3, 3)
    assert torch.equal(wide.states["norm.running_var"], net.norm.running_var[[0, 1, 2, 3, 4, 5, 5, 0]])
    columns = net.fc.weight.detach().reshape(3, 10, 4)
    wanted = torch.cat([columns[:, [0, 1, 2, 3, 4, 5, 5, 0]], columns[:, [6, 7, 8, 9, 7]]], 1)
    wanted[:, [0, 5, 6, 7, 9, 12]] /= 2
    assert torch.allclose(wide.states["fc.weight"], wanted.reshape(3, 52))
    for training in (False, True):
        net.train(training)
        assert gap(run(wide, x, training=training), net(x)) < 1e-5


def test_copied_hidden_units_of_a_recurrent_layer() -> None:
    torch.manual_seed(0)
    net: Any = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 5, 3)
    head = nn.Linear(8, 2)
    both = tiny(lambda self, v: self.head(self.rnn(v)[0]), rnn=net, head=head)
    wide = surgery.duplicate(trace(both, x), {"width:rnn": [3]})
    hidden = net.weight_hh_l0.detach().reshape(4, 4, 4)
    wanted = hidden[:, [0, 1, 2, 3, 3]][..., [0, 1, 2, 3, 3]] * torch.tensor([1, 1, 1, 0.5, 0.5])
    assert torch.allclose(wide.states["rnn.weight_hh_l0"], wanted.reshape(20, 5))
    assert wide.states["rnn.weight_ih_l1"].shape == (20, 10)
    assert gap(run(wide, x), both(x)) < 1e-6


def attend(self: Any, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
    out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return out


def test_copied_heads_share_the_output_projection() -> None:
    net = tiny(attend, qkv=nn.Linear(6, 24), out=nn.Linear(8, 6))
    x = torch.randn(2, 5, 6)
    graph = trace(net, x)
    (name,) = [group.name for group in graph.groups if group.kind == "heads"]
    wide = surgery.duplicate(graph, {name: [2]})
    rows = net.qkv.weight.detach().reshape(3, 4, 2, 6)[:, [0, 1, 2, 3, 2]]
    assert torch.equal(wide.states["qkv.weight"], rows.reshape(30, 6))
    columns = net.out.weight.detach().reshape(6, 4, 2)[:, [0, 1, 2, 3, 2]] / torch.tensor([1, 1, 2, 1, 2.0])[:, None]
    assert torch.allclose(wide.states["out.weight"], columns.reshape(6, 10))
    assert gap(run(wide, x), net(x)) < 1e-6


def test_layer_normalisation_takes_equal_copies_only() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    x = torch.randn(4, 3)
    graph = trace(net, x)
    assert gap(run(surgery.duplicate(graph, {"width:0": range(6)}), x), net(x)) < 1e-6
    said = r"averages over the units of width:0.*the same number of times"
    with pytest.raises(PliantError, match=said):
        surgery.duplicate(graph, {"width:0": [0]})
    with pytest.raises(PliantError, match=said):
        surgery.append(graph, {"width:0": 1}, generator=torch.Generator())


def test_what_combines_units_by_more_than_a_sum_is_refused() -> None:
    net = tiny(lambda self, v: F.linear(self.a(v).softmax(-1), self.w), a=nn.Linear(3, 6), w=weight(2, 6))
    with pytest.raises(PliantError, match=r"aten.softmax.*combines the units"):
        surgery.duplicate(trace(net, torch.randn(4, 3)), {"width:a": range(6)})
    peak = tiny(lambda self, v: self.a(v).amax(-1), a=nn.Linear(3, 6))
    x = torch.randn(4, 3)
    assert gap(run(surgery.duplicate(trace(peak, x), {"width:a": [1, 1]}), x), peak(x)) == 0
    with pytest.raises(PliantError, match="combines the units"):
        surgery.append(trace(peak, x), {"width:a": 1}, generator=torch.Generator())


@pytest.mark.parametrize(
    ("f", "parts"),
    [
        (lambda self, v: self.a(v) @ self.a.weight, {"a": nn.Linear(3, 6)}),  # tied: made and read
        (lambda self, v: self.a(v).sum(-1), {"a": nn.Linear(3, 6)}),  # no tensor reads
        (lambda self, v: (self.a(v) * self.b(v)).sum(-1) / 6, {"a": nn.Linear(3, 6), "b": nn.Linear(3, 6)}),
        (lambda self, v: torch.einsum("ni,ni->n", self.a(v), self.b(v)), {"a": nn.Linear(3, 6), "b": nn.Linear(3, 6)}),
        (lambda self, v: F.linear(self.a(v).relu(), self.w * 2.0 + 1.0), {"a": nn.Linear(3, 6), "w": weight(2, 6)}),
    ],
    ids=["tied", "sum", "product", "einsum", "computed"],
)
def test_where_no_tensor_can_be_shared_out_the_value_is_multiplied(f: Any, parts: dict[str, nn.Module]) -> None:
    net, x = tiny(f, **parts), torch.randn(4, 3)
    graph = trace(net, x)
    (name,) = [group.name for group in graph.groups]
    wide = surgery.duplicate(graph, {name: [0, 0, 4]})
    assert "shares" in wide.states
    assert "shares" not in wide.parameters
    assert gap(run(wide, x), net(x)) < 1e-5
    back = surgery.merge(wide, {name: [[0, 6, 7], [4, 8]]})
    assert gap(run(back, x), net(x)) < 1e-5
    again = surgery.duplicate(wide, {name: [8]})
    assert gap(run(again, x), net(x)) < 1e-5


def test_the_result_is_run_even_where_the_rules_see_nothing(x: Tensor) -> None:
    graph = trace(two_layers(), x)
    graph.analysis.readings.clear()
    with pytest.raises(PliantError, match="does not stay the same"):
        surgery.duplicate(graph, {"width:0": [1]})


def test_units_that_the_network_tells_apart_cannot_move(x: Tensor) -> None:
    graph = trace(two_layers(), x)
    axis = graph.state_axes["2.weight"].pop(1)
    assert len(axis.group) == 4
    for action in (surgery.permute, surgery.remove):
        with pytest.raises((PliantError), match="the network"):
            action(graph, {"width:0": [1, 0, 3, 2] if action is surgery.permute else [1, 3]})


def test_the_number_that_depends_on_the_batch_grows(x: Tensor) -> None:
    torch.manual_seed(0)
    net = tiny(lambda self, v: self.mha(v, v, v)[0], mha=nn.MultiheadAttention(8, 4, batch_first=True))
    v = torch.randn(2, 3, 8)
    graph = trace(net, v)
    wide = surgery.duplicate(graph, {graph.groups[0].name: [0, 3]})
    more = torch.randn(5, 3, 8)
    assert gap(run(wide, more), net.eval()(more)) < 1e-6
    twice = surgery.duplicate(wide, {graph.groups[0].name: [5]})
    assert gap(run(twice, more), net(more)) < 1e-6


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("permute", {"width:9": [0]}, "no group 'width:9'; groups are width:0"),
    ("permute", {"width:0": [0, 1, 2, 2]}, "each of its 4 units once"),
    ("remove", {"width:0": [4]}, "has the units 0 to 3, got 4"),
    ("remove", {"width:0": []}, "at least one unit"),
    ("duplicate", {"width:0": [-1]}, "has the units 0 to 3"),
    ("split", {"width:0": {0: [0.5, 0.6]}}, "must add up to 1"),
    ("split", {"width:0": {7: [0.5, 0.5]}}, "has the units 0 to 3"),
    ("merge", {"width:0": [[0, 1], [1, 2]]}, "no unit twice"),
    ("merge", {"width:0": [[]]}, "at least one unit"),
]


@pytest.mark.parametrize(("name", "what", "said"), BAD, ids=[f"{b[0]}-{b[2][:14]}" for b in BAD])
def test_wrong_units_are_named(x: Tensor, name: str, what: dict[str, Sequence[int]], said: str) -> None:
    graph = trace(two_layers(), x)
    with pytest.raises(ValueError, match=said):
        getattr(surgery, name)(graph, what)


def test_ordered_groups_are_left_alone() -> None:
    graph = trace(
        nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 1, 1)), torch.randn(2, 1, 8, 8), asked=["kernel:0"]
    )
    assert "kernel:0" in [group.name for group in graph.groups]
    with pytest.raises(PliantError, match="places that they cannot leave"):
        surgery.permute(graph, {"kernel:0": [1, 0, 2, 3, 4]})
    smaller = surgery.remove(graph, {"width:0": [0, 2]})
    assert smaller.asked == ("kernel:0",)
    assert "kernel:0" in [group.name for group in smaller.groups]


def test_the_result_bends_is_saved_and_trains(x: Tensor, tmp_path: Any) -> None:
    net = two_layers(8)
    wide = surgery.duplicate(trace(net, x), {"width:0": range(8)})
    module = to_module(wide, name="Wide")
    assert type(module).__name__ == "Wide"
    assert list(module.state_dict()) == list(net.state_dict())
    module(x).sum().backward()
    assert module.get_parameter("0.weight").grad is not None
    family = elastic(module, x, verbose=False)
    assert gap(family.eval()(x), net(x)) < 1e-6
    family.save(tmp_path / "net")
    small = surgery.remove(type(family).load(tmp_path / "net").graph, {"width:0": [0, 9]})
    assert to_module(small)(x).shape == (5, 2)


def test_to_module_copies(x: Tensor) -> None:
    net = two_layers()
    graph = trace(net, x)
    module = to_module(graph)
    with torch.no_grad():
        module.get_parameter("0.weight").zero_()
    assert bool(net[0].weight.any())
    assert graph.states["0.weight"] is net[0].weight
