"""Antialiased resizing, which the tracing exporter has no ONNX form for."""

from functools import cache
from typing import Any

import torch

OPERATOR = "aten::_upsample_bilinear2d_aa"
OPSET = 18
"""The first version in which ONNX resizes with antialiasing."""


@cache
def allow_antialias() -> None:
    """Let `torch.onnx.export(dynamo=False, opset_version=OPSET)` write `F.interpolate(antialias=True)` of images.

    It stays so: torch's table does not bear an operator that is taken out again.
    """
    torch.onnx.register_custom_op_symbolic(OPERATOR, _resize, OPSET)  # type: ignore[attr-defined]


def _resize(g: Any, image: Any, size: Any, align_corners: Any, *scales: Any) -> Any:
    """[N, C, H, W] to [N, C, *size]; weights outside the image are left out, as torch does."""
    if size.node().mustBeNone():
        raise NotImplementedError("antialiased resizing by a factor")  # the other exporter does it

    def constant(values: list[int]) -> Any:
        return g.op("Constant", value_t=torch.tensor(values))

    lead = g.op("Slice", g.op("Shape", image), constant([0]), constant([2]), constant([0]))
    none = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return g.op(
        "Resize",
        image,
        none,
        none,
        g.op("Concat", lead, size, axis_i=0),
        antialias_i=1,
        exclude_outside_i=1,
        mode_s="linear",
        coordinate_transformation_mode_s="half_pixel",  # were corners aligned, the check would see it
    )
