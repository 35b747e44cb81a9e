"""Blocks for many rows: every rule gives what the block gives row by row."""

import io
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.deploy.row_graph import NoRule
from pliant.deploy.rows import with_rows
from pliant.export.to_onnx import quiet


class Of(nn.Module):
    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


def exported(net: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    buffer = io.BytesIO()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused transformer layer has no ONNX form
    with quiet(), torch.no_grad():
        torch.onnx.export(
            net.eval(), inputs, buffer, dynamo=False, opset_version=17, do_constant_folding=False,  # type: ignore[arg-type]
            input_names=[f"p#{n}" for n in range(len(inputs))],
        )  # fmt: skip
    torch.backends.mha.set_fastpath_enabled(True)
    return onnx.load_model_from_string(buffer.getvalue())


CASES: dict[str, tuple[Callable[..., Any], tuple[nn.Module, ...], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda m, x: m(x), (nn.Linear(4, 3),), ((1, 4),)),
    "linear of three axes": (lambda m, x: m(x), (nn.Linear(4, 3),), ((1, 5, 4),)),
    "convolution": (
        lambda m, x: m(x),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),),
        ((1, 3, 6, 6),),
    ),
    "pooling": (lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 2), (), ((1, 3, 8, 8),)),
    "adaptive pooling": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), (), ((1, 3, 8, 8),)),
    "attention": (lambda m, x: m(x), (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),), ((1, 5, 8),)),
    "lstm": (lambda m, x: m(x)[0], (nn.LSTM(4, 3, 2, bidirectional=True),), ((5, 1, 4),)),
    "gru with a state": (lambda m, x, h: m(x, h), (nn.GRU(4, 3),), ((5, 1, 4), (1, 1, 3))),
    "cell": (lambda m, x: m(x), (nn.GRUCell(4, 3),), ((1, 4),)),
    "reductions": (lambda x: (x.sum(), x.mean(1), x.max(), x.sum((0, 2)), x.amin(-1, keepdim=True)), (), ((1, 3, 4),)),
    "numbers": (lambda x, n: (x * n, n > 2, torch.where(n > 0, x, -x)), (), ((1, 3), ())),
    "broadcasting": (lambda x, y: x + y, (), ((1, 3, 4), (4,))),
    "slices": (lambda x: (x[:, 1:3], x[0, 1], x[..., -1], x.unbind(1)[0]), (), ((1, 4, 3),)),
    "concatenation": (lambda x: torch.cat([x, x * 2, torch.ones(1, 2)], 1), (), ((1, 4),)),
    "stack and transposition": (lambda x: torch.stack([x, x]).transpose(1, 2).permute(2, 0, 1), (), ((3, 4),)),
    "softmax and argmax": (lambda x: (x.softmax(-1), x.log_softmax(0), x.argmax(), x.argmax(-1)), (), ((2, 4),)),
    "top": (lambda x: x.topk(2).values, (), ((1, 5),)),
    "resize": (lambda x: F.interpolate(x, scale_factor=2), (), ((1, 3, 4, 4),)),
    "padding": (lambda x: F.pad(x, (1, 2)), (), ((1, 3, 4),)),
    "clamp and powers": (lambda x: x.clamp(-1, 1).pow(2).sqrt() + x.norm(), (), ((1, 4),)),
    "vectors": (lambda x, y: (x @ y, y @ x.t()), (), ((3, 4), (4,))),
    "expansion": (lambda x: x.expand(3, 4) * 2, (), ((1, 4),)),
    "cumulative": (lambda x: x.cumsum(1), (), ((1, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_side_by_side_give_what_single_rows_give(name: str) -> None:
    torch.manual_seed(0)
    function, parts, shapes = CASES[name]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    proto = exported(Of(function, *parts), inputs)
    made = with_rows(proto, [[torch.randn(shape) for shape in shapes] for _ in range(4)])
    assert [item.type.tensor_type.shape.dim[0].dim_param for item in made.graph.input] == ["N"] * len(shapes)


def test_an_embedding_takes_the_index_of_each_row() -> None:
    net = Of(lambda m, n: m(n), nn.Embedding(7, 3))
    proto = exported(net, (torch.tensor([[1, 2]]),))
    with_rows(proto, [[torch.tensor([[n, 2 * n]])] for n in range(3)])


def test_what_has_no_rule_is_told() -> None:
    proto = exported(Of(lambda x: torch.det(x)), (torch.randn(3, 3),))
    with pytest.raises(NoRule, match="no rule for Det"):
        with_rows(proto, [[torch.randn(3, 3)] for _ in range(2)])
