"""New orders of units: they change nothing, they sort by importance, and the check finds what the analysis missed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import seeded
from pliant.elastic import Elastic, elastic
from pliant.elastic.order import PermutationCheck, cycles, magnitude, permuted
from pliant.graph import rules
from pliant.graph.graph import trace


@torch.library.custom_op("pliant_order_tests::running_sum", mutates_args=())
def running_sum(x: Tensor) -> Tensor:
    """Adds up along axis 1: unit i of the result hangs on all units before it."""
    return x.cumsum(1)


@running_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Ordered(nn.Module):
    """A layer whose units are told apart by their order, between two whose units are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = running_sum(self.second(self.first(x).relu()))
        out: Tensor = self.head(hidden)
        return out


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nets.mlp((6,), 3, hidden=(8, 12))


def tokens() -> Tensor:
    return torch.randint(11, (3, 12), generator=seeded(0, "tokens"))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, torch.randn(4, 6, generator=seeded(0, "mlp"))),
    "resnet": (lambda: nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=8), torch.randn(4, 3, 8, 8)),
    "vit": (lambda: nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4), torch.randn(3, 3, 8, 8)),
    "gpt": (lambda: nets.gpt((12,), 11, dim=16, depth=2, heads=4), tokens()),
    "lstm": (lambda: nets.lstm((7, 6), 5, hidden=12, layers=2, bidirectional=True), torch.randn(3, 7, 6)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[Elastic, Any]:
    torch.manual_seed(0)
    build, x = NETS[name]
    model = build().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    x = torch.randn(x.shape, dtype=dtype) if x.is_floating_point() else x
    return elastic(model.to(dtype), x, verbose=False), x


@pytest.mark.parametrize("name", NETS)
def test_sorting_leaves_the_function_as_it_is(name: str) -> None:
    net, x = make(name)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with torch.no_grad():
        wanted = net(x)
        net.sort_units()
        got = net(x)
    assert float((got - wanted).abs().max()) <= 1e-9 * max(1.0, float(wanted.abs().max()))
    moved = [key for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])]
    assert moved
    for key in moved:  # nothing but places changed
        assert torch.equal(net.state_dict()[key].flatten().sort().values, before[key].flatten().sort().values)


def test_magnitude_by_hand() -> None:
    net, _ = make("mlp")
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    out, into = state["body.0.weight"].norm(dim=1), state["body.2.weight"].norm(dim=0)
    score = out / out.mean() + into / into.mean()
    found = magnitude(net.graph, net._current())
    assert torch.allclose(found[0], score, rtol=0, atol=1e-12)
    net.sort_units("magnitude")
    order = score.argsort(descending=True)
    assert not torch.equal(order, torch.arange(8))
    assert torch.equal(net.state_dict()["body.0.weight"], state["body.0.weight"][order])
    assert torch.equal(net.state_dict()["body.0.bias"], state["body.0.bias"][order])
    sorted_again = magnitude(net.graph, net._current())
    assert all(bool((values.diff() <= 0).all()) for values in sorted_again.values())


def test_the_narrow_sub_network_keeps_what_matters() -> None:
    """Units that do nothing go last, so that the smaller sub-network computes the same."""
    model: Any = mlp().double()
    with torch.no_grad():
        model.body[2].weight[:, [0, 2, 5, 6]] = 0.0
        model.body[0].weight[[0, 2, 5, 6]] = 0.0
    x = torch.randn(4, 6, dtype=torch.float64)
    net = elastic(model, x, verbose=False)
    half = {"width:body.0": 4}
    with torch.no_grad():
        wanted = model(x)
        with net.using(half):
            assert float((net(x) - wanted).abs().max()) > 1e-3
        net.sort_units()
        with net.using(half):
            assert float((net(x) - wanted).abs().max()) <= 1e-9


def test_scores_of_ones_own_and_functions() -> None:
    net, x = make("mlp")
    first = net.state_dict()["body.0.weight"].clone()
    second = net.state_dict()["body.2.bias"].clone()
    with torch.no_grad():
        wanted = net(x)
        net.sort_units({"width:body.0": list(range(8))})
        assert torch.equal(net.state_dict()["body.0.weight"], first.flip(0))
        assert torch.equal(net.state_dict()["body.2.bias"], second)

        def biases(family: Elastic) -> Mapping[str, list[float]]:
            assert family is net
            return {"width:body.2": family.state_dict()["body.2.bias"].tolist()}

        net.sort_units(biases)
        assert torch.equal(net.state_dict()["body.2.bias"], second.sort(descending=True).values)
        assert float((net(x) - wanted).abs().max()) <= 1e-9


def test_equal_scores_keep_their_order() -> None:
    net, _ = make("mlp")
    before = net.state_dict()["body.0.weight"].clone()
    net.sort_units({"width:body.0": [1.0] * 8})
    assert torch.equal(net.state_dict()["body.0.weight"], before)


@pytest.mark.parametrize(
    ("importance", "words"),
    [
        ("size", ("'magnitude'", "'size'")),
        ({"width:nonsense": [1.0]}, ("'width:nonsense'", "width:body.0")),
        ({"width:body.0": [1.0, 2.0]}, ("width:body.0", "8 scores", "(2,)")),
        ({"width:body.0": [[1.0] * 8]}, ("width:body.0", "8 scores", "(1, 8)")),
    ],
)
def test_wrong_importance_is_named(importance: Any, words: tuple[str, ...]) -> None:
    net, _ = make("mlp")
    before = net.state_dict()["body.0.weight"].clone()
    with pytest.raises(ValueError, match="importance") as caught:
        net.sort_units(importance)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert torch.equal(net.state_dict()["body.0.weight"], before)


# -- the check ---------------------------------------------------------------------------------------------------------


def test_cycles_leave_no_unit_in_its_place_and_repeat() -> None:
    one, two = cycles([2, 5, 64]), cycles([2, 5, 64])
    for group, units in enumerate([2, 5, 64]):
        assert sorted(one[group]) == list(range(units))
        assert (one[group] != np.arange(units)).all()
        assert (one[group] == two[group]).all()


@pytest.mark.parametrize("name", NETS)
def test_sound_networks_pass_and_a_forgotten_axis_shows(name: str) -> None:
    net, _ = make(name)
    check = PermutationCheck(net.graph)
    assert check.unsound() == []
    permutations = cycles(net.graph.analysis.units)
    assert check.error(permutations) <= 1e-9
    for group, order in permutations.items():
        state, axis = net.graph.groups[group].where[0]
        assert check.error({group: order}, leave=(state, axis)) > 1e-9


def test_permuted_leaves_the_given_tensors_alone() -> None:
    net, _ = make("mlp")
    current = {name: tensor.detach() for name, tensor in net._current().items()}
    before = {name: tensor.clone() for name, tensor in current.items()}
    moved = permuted(net.graph, current, {0: np.array([1, 0, 2, 3, 4, 5, 6, 7])})
    assert torch.equal(moved["body.0.weight"][:2], before["body.0.weight"][:2].flip(0))
    assert torch.equal(moved["body.2.weight"][:, :2], before["body.2.weight"][:, :2].flip(1))
    assert all(torch.equal(current[name], tensor) for name, tensor in before.items())


@pytest.fixture
def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that says of the running sum what is true of a pointwise operator."""
    monkeypatch.setitem(rules.RULES, "pliant_order_tests.running_sum", rules.keep)


def test_an_operator_without_a_rule_is_rigid_and_sound() -> None:
    net = elastic(Ordered(), torch.randn(3, 6), verbose=False)
    assert [knob.name for knob in net.space] == ["width:first"]
    assert any("running_sum" in rigid.operator for rigid in net.report().rigid)


def test_a_wrong_rule_is_found_out(wrong_rule: None) -> None:
    graph = trace(Ordered(), torch.randn(3, 6))
    names = [group.name for group in graph.groups]
    assert names == ["width:first", "width:second"]  # the analysis believes the rule
    assert PermutationCheck(graph).unsound() == [1]


def test_an_unsound_group_becomes_rigid_and_is_told(wrong_rule: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    net = elastic(Ordered(), x, verbose=False)
    assert [knob.name for knob in net.space] == ["width:first"]
    told = [rigid for rigid in net.report().rigid if rigid.module == "second"]
    assert len(told) == 1
    assert "cannot be reordered" in told[0].reason
    assert [row.name for row in net.report().groups] == ["width:first"]
    with torch.no_grad():
        wanted = net(x)
        net.sort_units()
        assert torch.allclose(net(x), wanted, atol=1e-6)
        with pytest.raises(ValueError, match="no group 'width:second'; groups are width:first"):
            net.sort_units({"width:second": list(range(8))})
        small = net.extract(net.space.smallest())
        assert small.state_dict()["second.weight"].shape == (8, 4)


def test_the_check_can_be_left_out(wrong_rule: None) -> None:
    x = torch.randn(3, 6)
    net = elastic(Ordered(), x, check=False, verbose=False)
    assert {knob.name for knob in net.space} == {"width:first", "width:second"}
    with torch.no_grad():
        wanted = net(x)
        net.sort_units({"width:second": list(range(8))})
        assert float((net(x) - wanted).abs().max()) > 1e-3  # which is what the check is there for


def test_where_only_a_combination_fails_every_group_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    check = PermutationCheck(trace(mlp(), torch.randn(3, 6)))
    monkeypatch.setattr(check, "error", lambda permutations, leave=None: 0.0 if len(permutations) == 1 else 1.0)
    assert check.unsound() == [0, 1]


def test_the_check_leaves_statistics_and_random_state_alone() -> None:
    torch.manual_seed(0)
    model = nets.resnet((3, 8, 8), 5, blocks=(1,), width=8)
    graph = trace(model, torch.randn(3, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    PermutationCheck(graph).unsound()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
