"""Residual networks for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """3x3 stem, stages of basic blocks (each stage after the first halves the image), mean over the image, Linear.

    He et al. 2015, "Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>, section 4.2, with
    option B shortcuts (1x1 projections).

    Args:
        in_channels: channels of the image.
        classes: outputs.
        blocks: basic blocks per stage; a network with B blocks has 2B + 2 weighted layers.
        width: channels of the stem and of the first stage; every further stage doubles them.
        dropout: before the head.
    """

    def __init__(
        self, in_channels: int, classes: int, *, blocks: Sequence[int], width: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        channels = width
        for index, count in enumerate(blocks):
            out_channels = width * 2**index
            stage = [BasicBlock(channels, out_channels, stride=1 if index == 0 else 2)]
            stage += [BasicBlock(out_channels, out_channels) for _ in range(count - 1)]
            stages.append(nn.Sequential(*stage))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> logits [N, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.stages(x))
        logits: Tensor = self.fc(self.dropout(torch.flatten(x, 1)))
        return logits


def resnet(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    blocks: Sequence[int] = (1, 1, 1),
    width: int = 16,
    dropout: float = 0.0,
) -> ResNet:
    """CIFAR-style residual network of any depth.

    Args:
        shape: (channels, height, width) of one image; any image size.
        classes: outputs.
        blocks: basic blocks per stage.
        width: channels of the first stage; every further stage doubles them.
        dropout: before the head, in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    channels, _, _ = checks.image(shape)
    checks.counts(classes=classes, width=width)
    per_stage = checks.count_list("blocks", blocks)
    return ResNet(channels, classes, blocks=per_stage, width=width, dropout=checks.share("dropout", dropout))


def resnet8(shape: Sequence[int] = (3, 32, 32), classes: int = 10, *, width: int = 16, dropout: float = 0.0) -> ResNet:
    """`resnet` with one block in each of three stages: 8 weighted layers."""
    return resnet(shape, classes, blocks=(1, 1, 1), width=width, dropout=dropout)


def resnet20(shape: Sequence[int] = (3, 32, 32), classes: int = 10, *, width: int = 16, dropout: float = 0.0) -> ResNet:
    """`resnet` with three blocks in each of three stages: 20 weighted layers."""
    return resnet(shape, classes, blocks=(3, 3, 3), width=width, dropout=dropout)


def resnet56(shape: Sequence[int] = (3, 32, 32), classes: int = 10, *, width: int = 16, dropout: float = 0.0) -> ResNet:
    """`resnet` with nine blocks in each of three stages: 56 weighted layers."""
    return resnet(shape, classes, blocks=(9, 9, 9), width=width, dropout=dropout)
