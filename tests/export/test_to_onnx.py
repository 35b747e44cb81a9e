"""Exported networks compute what torch computes, keep their names, and take any batch."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.core.calls import call, tensors_of
from pliant.export import to_onnx


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm, self.again = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(self.norm(self.conv(x))))
        out: Tensor = self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(self.lstm(self.embed(tokens))[0])[0][:, -1])
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        x = self.layer(x)
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return {"logits": self.head(x.mean(1)), "hidden": (x, x.size(1))}


CASES = {
    "mlp": (Mlp, torch.randn(4, 6)),
    "convolutional": (Convolutional, torch.randn(4, 1, 6, 6)),
    "recurrent": (Recurrent, torch.randint(0, 11, (4, 5))),
    "attention": (Attention, torch.randn(4, 5, 8)),
    "dict": (Attention, {"x": torch.randn(4, 5, 8), "mask": torch.rand(4, 5)}),
    "tuple": (Attention, (torch.randn(4, 5, 8), torch.rand(4, 5))),
    "constant": (Attention, (torch.randn(4, 5, 8), None)),
}


def varied(module: nn.Module) -> nn.Module:
    """The module with BatchNorm statistics that are not those of initialisation."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize("name", CASES)
def test_an_exported_network_equals_torch_at_every_batch_size(name: str) -> None:
    make, example = CASES[name]
    module = varied(make()).train()
    before = copy.deepcopy(module.state_dict())
    model = to_onnx(module, example)
    assert model.exporter == "legacy"
    assert 0 < model.errors["max_rel"] < 1e-5
    assert module.training
    assert all(part.training for part in module.modules())
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])
    module.eval()
    for rows in (1, 2, 7):
        inputs = model.form.random(rows, torch.Generator().manual_seed(rows))
        with torch.no_grad():
            wanted = call(module, inputs)
        got = model.run(inputs)
        assert type(got) is type(wanted)
        for one, other in zip(tensors_of(wanted), tensors_of(got), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_initializers_are_the_state_dict_under_its_names(name: str) -> None:
    make, example = CASES[name]
    module = varied(make())
    weights = to_onnx(module, example, check=False).weights()
    wanted = {key: value for key, value in module.state_dict().items() if "num_batches" not in key}
    assert set(wanted) <= set(weights)
    for key, value in wanted.items():
        np.testing.assert_array_equal(weights[key], value.numpy())


def test_names_of_inputs_and_outputs_come_from_the_example_and_the_structure() -> None:
    model = to_onnx(Attention(), CASES["dict"][1])
    assert (model.inputs, model.outputs) == (("x", "mask"), ("logits", "hidden_0"))
    assert model.structure["dict"]["hidden"] == {"tuple": [{"t": 1}, {"py": 5}]}
    assert to_onnx(Mlp(), CASES["mlp"][1]).inputs == ("input",)
    assert to_onnx(Attention(), CASES["constant"][1]).inputs == ("input_0",)


def test_equal_parameters_stay_apart_and_tied_ones_stay_one() -> None:
    model = to_onnx(Convolutional(), CASES["convolutional"][1])
    assert {"norm.weight", "again.weight"} <= set(model.weights())
    tied = Recurrent()
    tied.head.weight = tied.embed.weight
    weights = to_onnx(tied, CASES["recurrent"][1]).weights()
    assert ("head.weight" in weights) != ("embed.weight" in weights)


def test_a_file_is_written_that_any_onnxruntime_reads(tmp_path: Path) -> None:
    module, example = Mlp(), torch.randn(2, 6)
    model = to_onnx(module, example, path=tmp_path / "mlp.onnx")
    onnx.checker.check_model(str(tmp_path / "mlp.onnx"))
    session = ort.InferenceSession(tmp_path / "mlp.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": torch.zeros(9, 6).numpy()})[0]
    np.testing.assert_allclose(got, module(torch.zeros(9, 6)).detach().numpy(), atol=1e-6)
    assert model.nodes == 3


def test_graphs_of_torch_export_keep_their_free_batch() -> None:
    module = Attention().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(2, 5, 8),), dynamic_shapes=({0: batch},))
    graph = program.module()
    assert "sym_size" in graph.code
    model = to_onnx(graph, torch.randn(2, 5, 8))
    assert model.exporter == "legacy"
    assert set(model.weights()) >= set(module.state_dict())


class Sinc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinc(self.norm(self.linear(x)))


def test_the_other_exporter_steps_in_and_keeps_names_too(capfd: pytest.CaptureFixture[str]) -> None:
    module = Sinc()
    model = to_onnx(module, torch.randn(4, 4))
    assert model.exporter == "dynamo"
    assert {"linear.weight", "linear.bias", "norm.weight", "norm.running_var"} <= set(model.weights())
    assert model.errors["max_rel"] < 1e-5
    assert capfd.readouterr() == ("", "")


class Cummax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1)[0]


def test_what_no_exporter_can_write_is_named() -> None:
    with pytest.raises(PliantError, match=r"Cummax: legacy exporter: .*aten::cummax.*dynamo exporter: .*aten.cummax"):
        to_onnx(Cummax(), torch.randn(4, 4))


class Counted(nn.Module):
    """A trace burns its number of rows in; the other exporter keeps it symbolic."""

    def forward(self, x: Tensor) -> Tensor:
        return x * int(x.shape[0])


class Stateful(nn.Module):
    """No graph computes this: every call is different."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_batch_size_burnt_into_the_graph_is_found() -> None:
    assert to_onnx(Counted(), torch.randn(4, 4)).exporter == "dynamo"


def test_results_that_differ_from_torch_are_refused() -> None:
    with pytest.raises(PliantError, match=r"Stateful: legacy exporter: .*example input, batch 1 differs from"):
        to_onnx(Stateful(), torch.randn(4, 4))


class Scatter(nn.Module):
    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_reduce(1, torch.zeros_like(x, dtype=torch.long), x, self.reduce)


def test_scatter_mean_is_refused_with_the_way_out_and_scatter_sum_is_not() -> None:
    with pytest.raises(PliantError, match=r"operator scatter_reduce: .*mean.*write it as scatter_reduce 'sum'"):
        to_onnx(Scatter("mean"), torch.randn(4, 4))
    assert to_onnx(Scatter("sum"), torch.randn(4, 4)).max_threads is None


class IndexAdd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(1, torch.tensor([0, 0, 1, 1]), x)


def test_index_add_is_held_to_one_thread() -> None:
    model = to_onnx(IndexAdd(), torch.randn(4, 4))
    assert model.max_threads == 1
    assert model.session(threads=2).get_session_options().intra_op_num_threads == 1


class Nested(nn.Module):
    def forward(self, data: dict[str, Any], factor: float) -> torch.Tensor:
        left, right = data["pair"]
        out: torch.Tensor = left * factor - right
        return out


def test_nested_examples_have_a_name_for_each_tensor() -> None:
    example = ({"pair": (torch.randn(4, 3), torch.randn(4, 3))}, 2.0)
    model = to_onnx(Nested(), example)
    assert model.form.names == ["input_0_0", "input_0_1"]
    other = ({"pair": (torch.randn(7, 3), torch.randn(7, 3))}, 2.0)
    assert torch.allclose(model.run(other), Nested()(*other))


@pytest.mark.parametrize("example", [torch.tensor(1.0), (None,)])
def test_examples_without_a_batch_axis_are_refused(example: Any) -> None:
    with pytest.raises(PliantError):
        to_onnx(Mlp(), example)


def test_an_example_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="a tensor, a tuple or a dict"):
        to_onnx(Mlp(), "x")


def test_embedding_bags_are_refused_with_the_way_out() -> None:
    net = nn.Sequential(nn.EmbeddingBag(9, 4, mode="mean"), nn.Linear(4, 2))
    with pytest.raises(PliantError, match=r"embedding_bag.*has no ONNX form.*sum or mean"):
        to_onnx(net, torch.tensor([[1, 2, 3], [4, 5, 6]]))
