"""Antialiased resizing on its way to ONNX."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.export import to_onnx


class Resized(nn.Module):
    """A resized image through a convolution."""

    def __init__(self, size: tuple[int, int], *, align_corners: bool = False) -> None:
        super().__init__()
        self.size, self.align_corners = size, align_corners
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4, h, w]."""
        x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=self.align_corners)
        out: Tensor = self.conv(x)
        return out


@pytest.mark.parametrize("size", [(9, 9), (24, 24), (7, 12), (40, 33)])
def test_the_fast_exporter_writes_it(size: tuple[int, int]) -> None:
    model = to_onnx(Resized(size).eval(), torch.randn(2, 3, 24, 24), tolerance=1e-5)
    assert model.exporter == "legacy"
    assert sum(node.op_type == "Resize" for node in model.proto.graph.node) == 1


def test_factors_are_left_to_the_other_exporter() -> None:
    class Halved(Resized):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True))
            return out

    assert to_onnx(Halved((0, 0)).eval(), torch.randn(2, 3, 24, 24)).exporter == "dynamo"


def test_aligned_corners_are_refused_because_both_write_them_wrongly() -> None:
    with pytest.raises(PliantError, match="differs from torch"):
        to_onnx(Resized((9, 9), align_corners=True).eval(), torch.randn(2, 3, 24, 24))
