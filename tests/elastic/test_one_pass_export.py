"""All widths as one plain module, and what ONNX makes of it and of a single width."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import pliant
from pliant import nets
from pliant.elastic import OnePass, one_pass
from pliant.export import to_onnx
from pliant.testing.subject import gap
from pliant_runtime import load


class Rectified(nn.Module):
    """What follows the head: writes over it, adds a constant, and hands on an input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.drop = nn.Linear(6, 12), nn.Conv1d(12, 3, 1), nn.Dropout(0.5)
        self.act, self.shift = nn.ReLU(inplace=True), nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.act(self.head(torch.relu(self.body(x)).transpose(1, 2)))
        return {"scores": scores, "dropped": self.drop(scores * self.shift), "x": x}


MAKE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (nets.mlp((12,), 5, hidden=(16, 13)), torch.randn(4, 12)),
    "resnet": lambda: (nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8), torch.randn(4, 3, 8, 8)),
    "gpt": lambda: (nets.gpt((10,), 20, dim=16, depth=2, heads=4, tied=False), torch.randint(20, (3, 10))),
    "rectified": lambda: (Rectified(), torch.randn(4, 5, 6)),
}


def _made(name: str, **options: object) -> tuple[OnePass, Tensor]:
    torch.manual_seed(0)
    model, x = MAKE[name]()
    net = one_pass(model, x, **options)  # type: ignore[arg-type]
    with torch.no_grad():  # equal entries would hide which of them is used where
        for tensor in net.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.2 * (tensor != 0))
    net(x)
    return net, x


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("name", MAKE)
def test_all_widths_in_one_plain_module(name: str, heads: str) -> None:
    net, x = _made(name, heads=heads)
    module = net.extract()
    assert isinstance(module, fx.GraphModule)
    assert module.training
    outputs = []
    for training in (True, False):
        for each in (net, module):
            torch.manual_seed(1)
            outputs.append(each.train(training)(x))
    if name != "rectified":  # dropout draws for all widths at once in the one, one after the other in the other
        assert gap(outputs[1], outputs[0]) < 1e-6
    assert gap(outputs[3], outputs[2]) < 1e-6
    assert all(tensor.shape[0] == net.widths for tensor in pliant.core.tensors_of(outputs[3]))
    assert set(dict(module.named_parameters())) == set(dict(net.named_parameters()))


def test_what_writes_over_the_result_of_a_head_trains() -> None:
    net, x = _made("rectified")
    module = net.extract()
    found = []
    for each in (net, module):
        output = each.eval()(x)
        output["scores"][1].square().mean().backward()
        found.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == {"body.weight", "body.bias", "head.weight", "head.bias"}
    torch.testing.assert_close(found[1]["body.weight"], found[0]["body.weight"])
    torch.testing.assert_close(found[1]["head.bias"].reshape(4, 3), found[0]["head.bias"])
    assert bool((found[0]["head.bias"][[0, 2, 3]] == 0).all())
    alone = net(x, width=2)["scores"]
    assert gap(alone, output["scores"][1]) < 1e-6


@pytest.mark.parametrize("name", MAKE)
def test_onnx_of_all_widths_and_of_one(name: str) -> None:
    net, x = _made(name)
    net.eval()
    with torch.no_grad():
        columns = net(x)
        whole, part = to_onnx(net.extract(), x), to_onnx(net.extract(2), x)
        assert gap(whole.run(x), columns) < 1e-5
        assert gap(part.run(x), net(x, width=2)) < 1e-5
        more = torch.cat([x, x.flip(0), x])
        assert gap(whole.run(more), net(more)) < 1e-5
    first = whole.proto.graph.output[0].type.tensor_type.shape.dim
    assert first[0].dim_value == net.widths  # the batch is the second axis
    assert first[1].dim_param
    assert part.proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    assert sum(w.size for w in part.weights().values()) < 0.5 * sum(w.size for w in whole.weights().values())


def test_a_width_compiles_as_a_network_of_its_own(tmp_path: Path) -> None:
    net, x = _made("mlp")
    net.eval()
    pliant.compile(net.extract(2), tmp_path / "artifact", example=x)
    with torch.no_grad():
        answer = torch.from_numpy(load(tmp_path / "artifact").run(x.numpy()))
        assert gap(answer, net(x, width=2)) < 1e-5
