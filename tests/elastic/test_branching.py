"""Networks that decide, elastic: axes tied over all branches, and every branch right after a cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core import PliantError, Selection, seeded
from pliant.deploy.prove import apart
from pliant.elastic import Elastic
from pliant.elastic.branching import Branching, difference
from pliant.elastic.walk import Walked
from pliant.testing.zoo_dynamic_text import dynamic

NETS = ("sdn_vgg", "sdn_resnet", "sdn_wideresnet", "sdn_mobilenet", "skipnet_fc", "skipnet_rnn", "blockdrop", "cascade",
        "pyramid", "nested_skip", "caption_attend", "caption_lstm", "deebert", "router", "act",
        "greedy_decoder")  # fmt: skip
SLOW = (
    "sdn_vgg",
    "caption_lstm",
    "skipnet_fc",
    "caption_attend",
    "nested_skip",
    "deebert",
    "sdn_wideresnet",
    "greedy_decoder",
)


class Exits(nn.Module):
    """Two stages; the second one only where the first is not sure."""

    def __init__(self, width: int = 16, inner: int = 24) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, width), nn.Linear(width, inner)
        self.back = nn.Linear(inner, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3]."""
        x = torch.relu(self.one(x))
        if x.mean() > 0.5:
            x = x + self.back(torch.relu(self.two(x)))
        out: Tensor = self.head(x)
        return out


class Normed(nn.Module):
    """A BatchNorm on one of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores and the way."""
        x = self.one(x)
        way = 0
        if x.sum() > 0:
            x = self.norm(x)
            way = 1
        return self.head(x), way


def arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy()
    if isinstance(value, dict):
        return {key: arrays(item) for key, item in value.items()}
    return type(value)(arrays(item) for item in value) if isinstance(value, list | tuple) else value


def near(wanted: Any, got: Any) -> bool:
    gap = apart(wanted, arrays(got))
    return gap is not None and gap < 1e-5


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETS])
def test_every_branch_is_right_after_a_cut(name: str) -> None:
    """A unit of every group goes; on every block of every branch the slices compute what the extracted module does."""
    net, draw = dynamic(name)
    generator = seeded(0, "branching", name)
    row = draw(generator)
    family = pliant.elastic(net, row)
    assert isinstance(family, Branching)
    assert family.graph.groups
    whole = family._extracted(family.space.largest(), None)
    assert isinstance(whole, Walked)
    assert difference(net, whole, row) == ""  # the widest is the original, block by block
    counts = family.graph.counts({g: group.units - 1 for g, group in enumerate(family.graph.groups)})
    cut = Selection({group.name: range(1, group.units) for group in family.graph.groups})
    small = family._extracted(cut, None)
    kept = dict(small.named_parameters(remove_duplicate=False))
    for g, group in enumerate(family.graph.groups):
        for state, axis in group.where:
            if state in kept:
                there = family.graph.state_axes[state][axis]
                assert kept[state].shape[axis] == there.size(counts) < len(there.group), (g, state)
    own = family._in_own_code(small)  # type: ignore[arg-type]
    assert own is None or difference(own, small, row) == ""  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(4):
            row = draw(generator)
            assert near(net(row), family(row))
            assert own is None or near(own(row), small(row))


def test_the_slices_run_as_the_extracted_network_does() -> None:
    family = pliant.elastic(Exits(), torch.randn(1, 8))
    assert [(group.name, group.units) for group in family.graph.groups] == [("width:one", 16), ("width:two", 24)]
    config = {"width:one": 8, "width:two": 6}
    small = family.extract(config)
    assert type(small) is Exits
    assert (small.one.out_features, small.two.out_features) == (8, 6)
    x = torch.randn(9, 8)
    with family.using(config), torch.no_grad():
        torch.testing.assert_close(family(x), torch.cat([small(row[None]) for row in x]))


def test_an_axis_bends_only_where_every_branch_agrees() -> None:
    class Fixed(Exits):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            if x.mean() > 0.5:
                return x  # what is returned cannot be cut, so neither can the other branch
            out: Tensor = self.head(x)
            return out

    family = pliant.elastic(Fixed(), torch.randn(1, 8))
    assert family.graph.groups == []


def test_what_loops_back_is_tied() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.begin, self.step, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.begin(x)
            while h.norm() > 0.5:
                h = torch.tanh(self.step(h)) * 0.5
            out: Tensor = self.head(h)
            return out

    family = pliant.elastic(Loop(), torch.randn(1, 8))
    assert {state for group in family.graph.groups for state, _ in group.where} == {
        "begin.weight", "begin.bias", "step.weight", "step.bias", "head.weight",
    }  # fmt: skip
    assert len(family.graph.groups) == 1
    small = family.extract({family.graph.groups[0].name: 4})
    x = torch.randn(1, 8)
    with family.using({family.graph.groups[0].name: 4}), torch.no_grad():
        torch.testing.assert_close(family(x), small(x))


def test_what_is_decided_by_keeps_its_size() -> None:
    net, draw = dynamic("router")
    family = pliant.elastic(net, draw(seeded(0, "x")))
    assert all(state != "gate.weight" for group in family.graph.groups for state, _ in group.where)
    assert any("gate" in rigid.reason for rigid in family.graph.rigid)


def test_a_size_written_into_the_code_is_not_run_with_another_one() -> None:
    net, draw = dynamic("act")  # zeros(…, 24) in its forward
    generator = seeded(0, "x")
    family = pliant.elastic(net, draw(generator))
    small = family.extract({"width:cell": 12})
    assert isinstance(small, Walked)
    assert type(small).__name__ == "ACT"
    row = draw(generator)
    with family.using({"width:cell": 12}), torch.no_grad():
        assert apart(family(row), arrays(small(row))) == 0.0
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in net.named_parameters()}


def test_rows_go_their_own_ways_and_gradients_reach_the_active_slices() -> None:
    torch.manual_seed(0)
    net = Exits()
    family = pliant.elastic(net, torch.randn(1, 8))
    family.train()
    x, y = torch.randn(16, 8) * 3, torch.randint(0, 3, (16,))
    with family.using({"width:two": 6}):
        loss = F.cross_entropy(family(x), y)
        torch.autograd.backward(loss)
    weight = dict(family.named_parameters())["two.weight"]
    assert weight.grad is not None
    assert weight.grad[:6].abs().sum() > 0
    assert weight.grad[6:].abs().sum() == 0


def test_it_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(48, 8)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
    family = pliant.elastic(Exits(), x[:1])
    smallest = family.space.smallest()

    def loss() -> float:
        with family.using(smallest), torch.no_grad():
            return float(F.cross_entropy(family(x), y))

    before = loss()
    family.train()
    optimizer = torch.optim.Adam(family.parameters(), lr=0.02)
    recipe = family.default_recipe()
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(recipe.step(family, (x, y), F.cross_entropy))
        optimizer.step()
    assert loss() < 0.8 * before


def test_batchnorm_takes_the_rows_that_meet_it_as_its_batch() -> None:
    torch.manual_seed(0)
    net = Normed()
    family = pliant.elastic(net, torch.randn(1, 8))
    x = torch.randn(32, 8)
    h = F.linear(x, family.get_parameter("one.weight"), family.get_parameter("one.bias"))
    there = h.sum(1) > 0
    family.train()
    scores, way = family(x)
    assert way.tolist() == there.int().tolist()
    normed = F.batch_norm(h[there], None, None, training=True)
    wanted = F.linear(normed, family.get_parameter("head.weight"), family.get_parameter("head.bias"))
    torch.testing.assert_close(scores[there], wanted)
    torch.testing.assert_close(family.get_buffer("norm.running_mean"), 0.1 * h[there].mean(0))


def test_statistics_are_estimated_on_the_rows_that_come_by() -> None:
    torch.manual_seed(0)
    family = pliant.elastic(Normed(), torch.randn(1, 8))
    x = torch.randn(64, 8)
    small = family.extract({family.graph.groups[0].name: 8}, calibrate=[x])
    h = F.linear(x, small.get_parameter("one.weight"), small.get_parameter("one.bias"))
    there = h.sum(1) > 0
    torch.testing.assert_close(small.get_buffer("norm.running_mean"), h[there].mean(0))
    torch.testing.assert_close(small.get_buffer("norm.running_var"), h[there].var(0))


def test_a_module_of_the_users_class_is_filled_and_compared() -> None:
    family = pliant.elastic(Exits(), torch.randn(1, 8))
    narrow = family.extract({"width:two": 6}, into=Exits(inner=6))
    x = torch.randn(1, 8)
    with family.using({"width:two": 6}), torch.no_grad():
        torch.testing.assert_close(family(x), narrow(x))

    class Other(Exits):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            if x.mean() > 0.5:
                x = x - self.back(torch.relu(self.two(x)))  # differs on a branch alone
            out: Tensor = self.head(x)
            return out

    with pytest.raises(PliantError, match="computes something else"):
        family.extract({"width:two": 6}, into=Other(inner=6))


@pytest.mark.parametrize("name", ["early_exit", "act", "router"])
def test_it_is_stored_without_its_code(name: str, tmp_path: Path) -> None:
    net, draw = dynamic(name)
    generator = seeded(0, "x")
    family = pliant.elastic(net, draw(generator))
    family.activate(family.space.smallest())
    family.save(tmp_path / "a")
    again = Elastic.load(tmp_path / "a")
    assert isinstance(again, Branching)
    assert again.active == family.active
    row = draw(generator)
    with torch.no_grad():
        assert apart(family(row), arrays(again(row))) == 0.0
        assert apart(family(row), arrays(again.extract(again.active)(row))) == 0.0


@pytest.mark.parametrize("name", ["early_exit", pytest.param("act", marks=pytest.mark.slow)])
def test_an_extracted_network_compiles(name: str, tmp_path: Path) -> None:
    from pliant_runtime import load

    net, draw = dynamic(name)
    generator = seeded(0, "x")
    row = draw(generator)
    family = pliant.elastic(net, row)
    small = family.extract(family.space.smallest())
    artifact = load(pliant.compile(small, tmp_path / "a", example=row))
    with family.using(family.space.smallest()), torch.no_grad():
        for _ in range(3):
            row = draw(generator)
            gap = apart(family(row), artifact.run(row.numpy()))
            assert gap is not None
            assert gap < 1e-4


def test_a_family_compiles_one_sub_network_at_a_time(tmp_path: Path) -> None:
    from pliant_runtime import load

    family = pliant.elastic(Exits(), torch.randn(1, 8))
    config = {"width:two": 6}
    artifact = load(pliant.compile(family, tmp_path / "a", configs=config))
    x = torch.randn(1, 8)
    with family.using(config), torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(artifact.run(x.numpy())), family(x))
    with pytest.raises(PliantError, match="one sub-network"):
        pliant.compile(family, tmp_path / "b", configs=[config, {"width:two": 12}])


def test_a_joint_graph_is_rebuilt_as_one_that_decides() -> None:
    family = pliant.elastic(Exits(), torch.randn(1, 8))
    module = pliant.to_module(family.graph)
    x = torch.randn(5, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), family(x))


def test_widths_of_a_network_that_decides_are_not_one_pass() -> None:
    with pytest.raises(PliantError, match="another way for every width"):
        pliant.one_pass(Exits(), torch.randn(1, 8))
