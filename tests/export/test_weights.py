"""Surgery on serialized graphs."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pliant.export import to_onnx
from pliant.export.weights import LARGE_BYTES, strip
from pliant_runtime.sessions import new_session


class Table(nn.Module):
    """A large constant that is no parameter, and a parameter that is called like an input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(512, dtype=torch.float32).reshape(2, 256)
        self.input = nn.Parameter(torch.randn(256))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table + self.input


def test_stripped_graphs_hold_no_weights_and_run_with_them_given() -> None:
    module = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    model = to_onnx(module, torch.randn(3, 40))
    graph, weights = strip(model.proto, model.state_names)
    assert len(graph) < LARGE_BYTES
    assert set(weights) == set(module.state_dict())
    import onnxruntime as ort

    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}
    session = new_session(graph, weights=values)
    x = torch.randn(5, 40)
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], module(x).detach().numpy(), atol=1e-5)


def test_graphs_of_equal_shape_are_equal_whatever_the_weights() -> None:
    first, second = (to_onnx(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), torch.randn(3, 4)) for _ in range(2))
    other = to_onnx(nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7)), torch.randn(3, 4))
    graphs = [strip(model.proto, model.state_names)[0] for model in (first, second, other)]
    assert graphs[0] == graphs[1] != graphs[2]


def test_stripping_leaves_the_model_as_it_was() -> None:
    model = to_onnx(nn.Linear(4, 4), torch.randn(3, 4))
    before = model.to_bytes()
    strip(model.proto, model.state_names)
    assert model.to_bytes() == before


def test_large_constants_become_weights() -> None:
    model = to_onnx(Table(), {"x": torch.randn(3, 2)})
    graph, weights = strip(model.proto, model.state_names)
    assert sorted(value.shape for value in weights.values()) == [(2, 256), (256,)]
    assert len(graph) < LARGE_BYTES
    parsed = onnx.load_model_from_string(graph)
    assert all(item.data_location == onnx.TensorProto.EXTERNAL for item in parsed.graph.initializer)


def test_an_input_and_a_parameter_of_one_name_are_told_apart() -> None:
    module = Table()
    model = to_onnx(module, torch.randn(3, 2))
    assert model.inputs == ("input",)
    x = torch.randn(4, 2)
    torch.testing.assert_close(model.run(x), module(x).detach())
    assert any(np.array_equal(value, module.input.detach().numpy()) for value in model.weights().values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_widths_survive(dtype: torch.dtype) -> None:
    module = nn.Linear(4, 4).to(dtype)
    model = to_onnx(module, torch.randn(3, 4, dtype=dtype), tolerance=1e-2)
    assert {value.dtype.name for value in model.weights().values()} == {str(dtype).removeprefix("torch.")}
