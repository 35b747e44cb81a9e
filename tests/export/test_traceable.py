"""Graphs rewritten so that sizes stay symbolic under a trace."""

import torch
from torch import Tensor, nn

from pliant.export import to_onnx
from pliant.export.traceable import traceable


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.size(0)
        start = torch.zeros(rows, 6)
        folded = (x @ self.weight + start).view(rows * 2, 3)
        return folded.reshape(rows, 6)[:, 1:] + torch.arange(rows).unsqueeze(1)


def exported(module: nn.Module, example: Tensor) -> torch.fx.GraphModule:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    return program.module()


def test_sizes_are_asked_of_tensors_and_parameters_are_shared() -> None:
    graph = exported(Sizes(), torch.randn(4, 6))
    before = graph.code
    copied = traceable(graph)
    assert isinstance(copied, torch.fx.GraphModule)
    assert "aten.sym_size" in before
    assert "aten.sym_size" not in copied.code
    assert graph.code == before
    assert copied.get_parameter("weight") is graph.get_parameter("weight")
    x = torch.randn(3, 6)
    assert torch.equal(copied(x), graph(x))


def test_the_exported_graph_takes_any_batch() -> None:
    module = Sizes()
    model = to_onnx(exported(module, torch.randn(4, 6)), torch.randn(4, 6))
    assert model.exporter == "legacy"
    x = torch.randn(9, 6)
    torch.testing.assert_close(model.run(x), module(x).detach(), rtol=1e-4, atol=1e-5)


def test_other_modules_are_left_alone() -> None:
    module = Sizes()
    assert traceable(module) is module
