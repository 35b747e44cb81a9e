"""Texts of ONNX graphs: what a line says, and that it can be read back."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.core import PliantError
from pliant.export import network_text, to_onnx
from pliant.export.network_text import read_line, simplified

IMAGE = torch.zeros(2, 3, 8, 8)


def net(width: int = 6) -> nn.Module:
    conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 5))


def test_lines_hold_operator_attributes_and_shapes() -> None:
    lines = network_text(to_onnx(net(), IMAGE, check=False)).splitlines()
    assert [line.split()[0] for line in lines] == ["Conv", "BatchNormalization", "Relu", "Flatten", "Gemm"]
    assert "kernel_shape 3x3 strides 2x2" in lines[0]
    assert lines[0].endswith("in 1x3x8x8 weights 6x3x3x3 out 1x6x4x4")


def test_texts_do_not_depend_on_weights_or_names_but_on_sizes(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.something = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.something(x)
            return result

    one, other, wider = (network_text(to_onnx(m, IMAGE, check=False)) for m in (net(), Named(), net(8)))
    assert one == other != wider
    path = to_onnx(net(), IMAGE, check=False).save(tmp_path / "net.onnx")
    assert network_text(path) == one


def test_operators_that_only_compute_shapes_or_turn_weights_are_left_out() -> None:
    text = network_text(to_onnx(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8)))
    words = {line.split()[0] for line in text.splitlines()}
    assert {"MatMul", "Softmax", "LayerNormalization"} <= words
    assert not words & {"Shape", "Constant", "ConstantOfShape", "Slice", "Where"}
    assert len(text.splitlines()) < 45
    assert any("weights 8x24" in line for line in text.splitlines() if line.startswith("MatMul"))


def test_simplified_folds_batch_norm() -> None:
    text = network_text(simplified(to_onnx(net(), IMAGE, check=False).proto))
    assert "BatchNormalization" not in text
    assert "weights 6x3x3x3 weights 6" in text  # the convolution has got a bias


def test_lines_are_read_back_with_their_work() -> None:
    conv, *_, linear = (read_line(line) for line in network_text(to_onnx(net(), IMAGE, check=False)).splitlines())
    assert (conv.operator, conv.channels, conv.macs, conv.parameters) == ("Conv", 6, 16 * 6 * 27, 6 * 27)
    assert conv.values == 3 * 64 + 6 * 16
    assert linear.macs == 96 * 5
    grouped = read_line("Conv group 4 in 1x4x8x8 weights 4x1x3x3 out 1x4x8x8")
    assert (grouped.group, grouped.macs) == (4, 9 * 4 * 64)
    product = read_line("MatMul in 1x2x5x4 in 1x2x4x6 out 1x2x5x6")
    assert product.macs == 2 * 5 * 6 * 4
    assert read_line("Relu in 1x4 out 1x4").macs == 0


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="give an ONNX model"):
        network_text(42)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"not an onnx file")
    with pytest.raises(PliantError, match=r"damaged\.onnx"):
        network_text(path)
