"""Depthwise-separable convolutional network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks


def _conv_bn(in_channels: int, out_channels: int, activation: str, *, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        checks.activation(activation),
    )


class SeparableConv(nn.Module):
    """Depthwise 3x3 then pointwise 1x1 convolution, each followed by BatchNorm and the activation."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, activation: str) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            checks.activation(activation),
        )
        self.pointwise = _conv_bn(in_channels, out_channels, activation, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class DwSep(nn.Module):
    """3x3 stem, a chain of depthwise-separable convolutions, mean over the image, Linear.

    Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"
    <https://arxiv.org/abs/1704.04861>, scaled to small images.

    Args:
        in_channels: channels of the image.
        classes: outputs.
        stem: channels of the stem.
        channels: output channels of each separable convolution.
        strides: stride of each separable convolution, as many as `channels`.
        activation: one of relu, relu6, hardswish, gelu, silu, tanh.
        dropout: before the head.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        stem: int,
        channels: Sequence[int],
        strides: Sequence[int],
        activation: str = "relu6",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = _conv_bn(in_channels, stem, activation, kernel=3)
        ins = (stem, *channels[:-1])
        self.blocks = nn.Sequential(
            *(
                SeparableConv(before, after, stride=stride, activation=activation)
                for before, after, stride in zip(ins, channels, strides, strict=True)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> logits [N, classes]."""
        x = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.dropout(torch.flatten(x, 1)))
        return logits


def dwsep(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    stem: int = 16,
    channels: Sequence[int] = (32, 64, 64, 128, 128),
    strides: Sequence[int] = (1, 2, 1, 2, 1),
    activation: str = "relu6",
    dropout: float = 0.0,
) -> DwSep:
    """MobileNet-v1-like network.

    Args:
        shape: (channels, height, width) of one image; any image size.
        classes: outputs.
        stem: channels of the stem convolution.
        channels: output channels of each separable convolution.
        strides: stride of each separable convolution, as many as `channels`.
        activation: one of relu, relu6, hardswish, gelu, silu, tanh.
        dropout: before the head, in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    in_channels, _, _ = checks.image(shape)
    checks.counts(classes=classes, stem=stem)
    checks.one_of("activation", activation, list(checks.ACTIVATIONS))
    channels, strides = checks.count_list("channels", channels), checks.count_list("strides", strides)
    if len(channels) != len(strides):
        raise ValueError(f"strides must be as many as channels, got {len(strides)} and {len(channels)}")
    return DwSep(
        in_channels,
        classes,
        stem=stem,
        channels=channels,
        strides=strides,
        activation=activation,
        dropout=checks.share("dropout", dropout),
    )
