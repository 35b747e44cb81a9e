"""The text form: the same for the same network, whatever it is called, holds or runs on; another one otherwise."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.diagram.text import graph_hash, sizes, to_text
from pliant.graph import Graph, trace

IMAGE = (3, 8, 8)


def mlp(hidden: tuple[int, ...] = (8, 6)) -> Graph:
    return trace(nets.mlp((5,), 3, hidden=hidden), torch.randn(2, 5))


def small_resnet(seed: int = 0, rows: int = 2) -> Graph:
    torch.manual_seed(seed)
    return trace(nets.resnet(IMAGE, 5, blocks=(1,), width=8), torch.randn(rows, *IMAGE))


def layers(activation: nn.Module, *, kernel: int = 3, width: int = 6, depth: int = 1) -> Graph:
    inner = [nn.Sequential(nn.Conv2d(width, width, kernel, padding="same"), activation) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
    return trace(nn.Sequential(nn.Conv2d(3, width, 1), *inner, *head), torch.randn(2, *IMAGE))


class Named(nn.Module):
    """Two layers under names that the caller chooses, registered in either order."""

    def __init__(self, first: str, second: str, *, turned: bool = False) -> None:
        super().__init__()
        parts = {first: nn.Linear(5, 7), second: nn.Linear(7, 5)}
        for name in reversed(parts) if turned else parts:
            self.add_module(name, parts[name])
        self.names = (first, second)

    def forward(self, values: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.names)
        out: Tensor = values + second(torch.relu(first(values)))
        return out


def test_weights_and_rows_do_not_matter() -> None:
    text = to_text(small_resnet())
    assert text == to_text(small_resnet(seed=1))
    assert text == to_text(small_resnet(rows=3))


def test_names_and_their_order_do_not_matter() -> None:
    plain = trace(Named("up", "down"), torch.randn(2, 5))
    assert to_text(plain) == to_text(trace(Named("zz", "a", turned=True), torch.randn(2, 5)))
    assert "down" not in to_text(plain)
    assert graph_hash(plain) == graph_hash(trace(Named("b", "c"), torch.randn(4, 5)))


def test_another_process_finds_the_same_hash() -> None:
    code = (
        "import json, torch; from pliant import nets; from pliant.graph import trace; "
        "from pliant.diagram.text import graph_hash; "
        "print(json.dumps(graph_hash(trace(nets.mlp((5,), 3, hidden=(8, 6)), torch.randn(2, 5)))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = graph_hash(mlp())
    assert json.loads(done.stdout) == found
    assert len(found) == 64


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: layers(nn.ReLU(), width=8), id="width"),
        pytest.param(lambda: layers(nn.ReLU(), depth=2), id="depth"),
        pytest.param(lambda: layers(nn.ReLU(), kernel=5), id="kernel"),
        pytest.param(lambda: layers(nn.GELU()), id="activation"),
        pytest.param(lambda: layers(nn.GELU(approximate="tanh")), id="attribute"),
    ],
)
def test_another_network_has_another_hash(other: Callable[[], Graph]) -> None:
    found = graph_hash(other())
    assert found != graph_hash(layers(nn.ReLU()))
    assert found == graph_hash(other())


def test_attributes_that_differ_show() -> None:
    assert graph_hash(layers(nn.GELU())) != graph_hash(layers(nn.GELU(approximate="tanh")))
    assert "momentum=0.2" in to_text(trace(nn.BatchNorm1d(4, momentum=0.2), torch.randn(2, 4)))


def test_a_line_for_every_value() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    assert to_text(trace(net, torch.randn(2, 5))).splitlines() == [
        "pliant graph 1",
        "%0 = input float32[N, 5]",
        "%1 = parameter float32[8, 5] 0:g0",
        "%2 = parameter float32[8] 0:g0",
        "%3 = aten.linear.default(input=%0, weight=%1, bias=%2) -> [N, 8] 1:g0",
        "%4 = aten.relu.default(self=%3) -> [N, 8] 1:g0",
        "%5 = parameter float32[3, 8] 1:g0",
        "%6 = parameter float32[3]",
        "%7 = aten.linear.default(input=%4, weight=%5, bias=%6) -> [N, 3]",
        "return %7",
    ]


def test_a_tied_weight_is_one_weight() -> None:
    tied, free = nets.gpt((6,), 9, dim=8, depth=1, heads=2), nets.gpt((6,), 9, dim=8, depth=1, heads=2, tied=False)
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    texts = [to_text(trace(net, tokens)) for net in (tied, free)]
    assert [text.count("= parameter float32[9, 8]") for text in texts] == [1, 2]
    assert "%0 = input int64[N, 6]" in texts[0]


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 2) * torch.ones(x.shape[0] * 3, 1)


def test_sizes_follow_the_batch() -> None:
    graph = trace(Rows(), torch.randn(2, 6))
    found = sizes(graph)
    shapes = {key[0]: [str(size) for size in shape] for key, shape in found.items()}
    assert ["3N", "2"] in shapes.values()
    assert ["N", "6"] in shapes.values()
    assert "(N * 3)" in to_text(graph)


def test_making_the_text_changes_nothing() -> None:
    graph = small_resnet()
    before = {name: tensor.clone() for name, tensor in graph.states.items()}
    state = torch.get_rng_state()
    to_text(graph)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(graph.states[name], tensor) for name, tensor in before.items())
