"""Surgery on spans, held against the same thing written by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import surgery
from pliant.core import PliantError
from pliant.diagram.text import graph_hash
from pliant.elastic import to_module
from pliant.graph import Graph, trace


def gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())


class Block(nn.Module):
    """A branch that ends in a batch normalisation."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if tensor.dim() == 1 and "conv" not in name:
                    tensor.add_(torch.rand(tensor.shape))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.stem(x))

    def head(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.mean((2, 3)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


FIRST, SECOND = "depth:blocks.0", "depth:blocks.1"


@pytest.fixture(scope="module")
def net() -> Any:
    return Net().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph(net: Any, x: Tensor) -> Graph:
    found = trace(net, x)
    assert found.span_names == [FIRST, SECOND]
    return found


def run(graph: Graph, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return to_module(graph).eval()(*inputs)


def test_skip_leaves_the_shortcut(net: Any, graph: Graph, x: Tensor) -> None:
    shorter = surgery.skip(graph, [FIRST])
    assert gap(run(shorter, x), net.head(net.blocks[1](torch.relu(net.features(x))))) < 1e-6
    assert shorter.span_names == [SECOND]
    assert not [name for name in shorter.states if name.startswith("blocks.0")], "counters and statistics go too"
    assert run(surgery.skip(shorter, [SECOND]), x).shape == (3, 3)
    assert gap(run(surgery.remove(graph, {FIRST: False}), x), run(shorter, x)) == 0
    assert len(graph.span_names) == 2


def test_a_repeated_branch_starts_at_zero_and_learns(net: Any, graph: Graph, x: Tensor) -> None:
    deeper = surgery.repeat(graph, {FIRST: 2})
    assert deeper.span_names == [FIRST, f"{FIRST}.repeats.1", f"{FIRST}.repeats.0", SECOND]
    assert gap(run(deeper, x), net(x)) < 1e-6
    new = {name: t for name, t in deeper.states.items() if "repeats.0" in name}
    zero = {name.rpartition("repeats.0.")[2] for name, t in new.items() if t.numel() > 1 and not t.detach().any()}
    assert zero == {"norm2.weight", "norm2.bias"}, "the norm that ends the branch, and nothing else"
    assert torch.equal(new["blocks.0.repeats.0.conv1.weight"], net.blocks[0].conv1.weight)
    module: Any = to_module(deeper).train()
    assert gap(module(x), copy.deepcopy(net).train()(x)) < 1e-5, "in training, too"
    module(x).square().sum().backward()
    assert float(module.get_parameter("blocks.0.repeats.0.norm2.weight").grad.abs().max()) > 0
    assert int(dict(module.named_buffers())["blocks.0.repeats.0.norm1.num_batches_tracked"]) == 2


def test_a_repeated_branch_can_be_a_copy(net: Any, graph: Graph, x: Tensor) -> None:
    deeper = surgery.repeat(graph, {SECOND: 1}, init="copy")
    block = net.blocks[1]
    y = net.blocks[0](net.features(x))
    y = y + block.branch(y)
    wanted = net.head(torch.relu(y + block.branch(y)))
    assert gap(run(deeper, x), wanted) < 1e-6
    assert deeper.states["blocks.1.repeats.0.conv1.weight"] is not graph.states["blocks.1.conv1.weight"]


def test_a_whole_block_is_repeated_behind_its_relu(net: Any, x: Tensor) -> None:
    graph = trace(net, x, asked=["block:blocks.1"])
    deeper = surgery.repeat(graph, {"block:blocks.1": 1})
    assert gap(run(deeper, x), net(x)) < 1e-6
    copied = surgery.repeat(graph, {"block:blocks.1": 1}, init="copy")
    assert gap(run(copied, x), net.head(net.blocks[1](net.blocks[1](net.blocks[0](net.features(x)))))) < 1e-6
    other = surgery.replace(graph, {"block:blocks.1": nn.Conv2d(4, 4, 1)})
    conv = nn.Conv2d(4, 4, 1)
    conv.load_state_dict({name: other.states[f"replaced.{name}"].detach() for name in ("weight", "bias")})
    assert gap(run(other, x), net.head(conv(net.blocks[0](net.features(x))))) < 1e-6


def test_a_layer_scale_or_a_projection_is_what_ends_a_branch() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
            self.gamma = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.gamma * self.b(torch.relu(self.a(x)))
            return out

    x = torch.randn(5, 4)
    net = nn.Sequential(Scaled(), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True))
    both = nn.Sequential(nn.Unflatten(1, (1, 4)), net)
    graph = trace(both, x)
    deeper = surgery.deepen(graph, graph.span_names)
    assert gap(run(deeper, x), both.eval()(x)) < 1e-6
    old = {name: graph.states[name.replace("repeats.0.", "")] for name in deeper.states if "repeats" in name}
    zero = [name for name, tensor in old.items() if tensor.detach().any() and not deeper.states[name].detach().any()]
    assert {name.rpartition("repeats.0.")[2] for name in zero} == {
        "gamma", "out_proj.weight", "linear2.weight", "linear2.bias",
    }  # fmt: skip


def test_a_branch_without_parameters_to_zero_says_so(x: Tensor) -> None:
    class Sig(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + torch.sigmoid(self.a(x))
            return out

    v = torch.randn(3, 4)
    graph = trace(Sig(), v)
    with pytest.raises(PliantError, match=r'make it change nothing.*init="copy"'):
        surgery.repeat(graph, {graph.span_names[0]: 1})
    assert surgery.repeat(graph, {graph.span_names[0]: 1}, init="copy").span_names


def test_a_shared_branch_gets_weights_of_its_own() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.f(x)
            out: Tensor = x + self.f(x)
            return out

    v, net = torch.randn(3, 4), Shared()
    graph = trace(net, v)
    deeper = surgery.repeat(graph, {graph.span_names[0]: 1})
    assert gap(run(deeper, v), net(v)) < 1e-6
    assert torch.equal(deeper.states["f.weight"], net.f.weight)


def test_insert_as_a_branch_or_as_a_layer(net: Any, graph: Graph, x: Tensor) -> None:
    torch.manual_seed(1)
    part = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    before = copy.deepcopy(part.state_dict())
    for at in (FIRST, "blocks.0", "stem"):
        wide = surgery.insert(graph, {at: part})
        assert gap(run(wide, x), net(x)) < 1e-6
        assert wide.states["inserted.0.weight"].detach().any()
        assert not wide.states["inserted.2.weight"].detach().any()
        assert len(wide.groups) > len(graph.groups), "its own units bend"
    assert all(torch.equal(before[name], tensor) for name, tensor in part.state_dict().items())
    asis = surgery.insert(graph, {"blocks.0": part}, init="copy", prefix="adapter")
    y = net.blocks[0](net.features(x)).detach()
    assert gap(run(asis, x), net.head(net.blocks[1](y + part(y)))) < 1e-6
    instead = surgery.insert(graph, {"blocks.0": trace(part, y)}, residual=False)
    assert gap(run(instead, x), net.head(net.blocks[1](part(y)))) < 1e-6
    twice = surgery.insert(graph, {"blocks.0": part, "blocks.1": part})
    assert {name.partition(".")[0] for name in twice.states} >= {"inserted", "inserted_1"}
    assert gap(run(twice, x), net(x)) < 1e-6


def test_replace_puts_another_branch_there(net: Any, graph: Graph, x: Tensor) -> None:
    torch.manual_seed(1)
    part = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
    other = surgery.replace(graph, {FIRST: part}, prefix="blocks.0.new")
    y = net.features(x)
    y = net.blocks[1](torch.relu(y + part(y)))
    assert gap(run(other, x), net.head(y)) < 1e-6
    assert not [name for name in other.states if name.startswith("blocks.0.conv")]
    assert "blocks.0.new.0.weight" in other.parameters
    assert other.span_names == ["depth:blocks.0.new.0", SECOND]
    with pytest.raises(PliantError, match=r"maps \[4, 6, 6\] to \[5, 6, 6\].*is needed"):
        surgery.replace(graph, {FIRST: nn.Conv2d(4, 5, 1)})


@pytest.mark.parametrize("at", [FIRST, "blocks.0", "stem", "fc"])
def test_cut_and_chain_give_the_network_back(net: Any, graph: Graph, x: Tensor, at: str) -> None:
    head, tail = surgery.cut(graph, at)
    assert set(head.states) | set(tail.states) == set(graph.states)
    assert not set(head.states) & set(tail.states), "counters too lie on one side"
    assert tail.states == {} or all(tail.states[name] is graph.states[name] for name in tail.states)
    assert gap(run(tail, run(head, x)), net(x)) < 1e-6
    whole = surgery.chain(head, tail)
    assert graph_hash(whole) == graph_hash(graph)
    assert gap(run(whole, torch.cat([x, x])), torch.cat([net(x), net(x)])) < 1e-6


def test_chain_stitches_two_networks(net: Any, graph: Graph, x: Tensor) -> None:
    other: Any = Net().eval()
    with torch.no_grad():
        other.fc.weight.add_(1.0)
    first, second = surgery.cut(graph, "blocks.0")[0], surgery.cut(trace(other, x), "blocks.0")[1]
    stitch = nn.Conv2d(4, 4, 1)
    both = surgery.chain(first, second, through=stitch, prefix="second")
    y = stitch(net.blocks[0](net.features(x)))
    assert gap(run(both, x), other.head(other.blocks[1](y))) < 1e-6
    assert {"stem.weight", "through.weight", "second.fc.weight"} <= both.parameters
    with pytest.raises(PliantError, match="the second takes"):
        surgery.chain(surgery.cut(graph, "stem")[0], trace(nn.Linear(6, 2), torch.randn(3, 6)))
    with pytest.raises(ValueError, match=r"both graphs hold a state '.*'; give the second's names a prefix"):
        surgery.chain(surgery.cut(graph, "blocks.0")[0], _same_names(graph))


def _same_names(graph: Graph) -> Graph:
    """The part behind the stem with other tensors under the same names."""
    names = {group.name: list(range(group.units)) for group in graph.groups}
    tail = surgery.cut(graph, "stem")[1]
    return surgery.permute(
        tail, {name: order[::-1] for name, order in names.items() if name in {g.name for g in tail.groups}}
    )


def test_cut_refuses_where_two_values_pass() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(x))) + x
            return out

    graph = trace(Skip(), torch.randn(3, 4))
    with pytest.raises(PliantError, match="also reads the input 'x'"):
        surgery.cut(graph, "a")


def test_wrong_places_are_named(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"no span 'depth:9'; spans are depth:blocks.0, depth:blocks.1"):
        surgery.skip(graph, ["depth:9"])
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        surgery.repeat(graph, {FIRST: 0})
    with pytest.raises(ValueError, match="got 'ones'"):
        surgery.repeat(graph, {FIRST: 1}, init="ones")
    with pytest.raises(ValueError, match="'nowhere' is no span, no module that is called and no node"):
        surgery.cut(graph, "nowhere")
    with pytest.raises(TypeError, match=r"a Graph or an nn\.Module is needed, got int"):
        surgery.insert(graph, {FIRST: 3})  # type: ignore[dict-item]
    with pytest.raises(PliantError, match=r"maps \[4, 6, 6\] to \[4, 4, 4\]"):
        surgery.insert(graph, {FIRST: nn.Conv2d(4, 4, 3)})
    with pytest.raises(PliantError, match="takes one tensor and returns one"):
        surgery.insert(graph, {FIRST: nn.MaxPool2d(1, return_indices=True)})
