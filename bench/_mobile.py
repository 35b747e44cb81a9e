"""A small mobile network with 5x5 depthwise kernels, whose kernels, widths and blocks all bend."""

import torch
from torch import Tensor, nn


def _conv_bn(
    in_channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Inverted(nn.Module):
    """Inverted residual: 1x1 expansion, 5x5 depthwise convolution, 1x1 projection."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.expand = _conv_bn(in_channels, inner)
        self.depthwise = _conv_bn(inner, inner, kernel=5, stride=stride, groups=inner)
        self.project = _conv_bn(inner, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        out: Tensor = self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
        return x + out if self.residual else out


class Mobile(nn.Module):
    """MobileNet-v2-like network (Sandler et al. 2018) of two stages with 5x5 kernels, for images of about 28 pixels.

    Args:
        in_channels: of the image.
        classes: outputs.
        width: channels of the stem and the first stage; the second has twice as many.
        blocks: of each stage; the first of the second stage halves the image.
    """

    def __init__(self, in_channels: int, classes: int, *, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _conv_bn(in_channels, width, kernel=3, stride=2)
        stages, before = [], width
        for number, count in enumerate(blocks):
            after = width * 2**number
            first = Inverted(before, after, stride=1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(Inverted(after, after, stride=1) for _ in range(count - 1))))
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> logits [N, classes]."""
        x = self.stages(torch.relu(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
