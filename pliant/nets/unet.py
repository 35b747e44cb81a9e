"""U-Net for images: one output per pixel."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks
from pliant.nets.resnet import BasicBlock


def _level(in_channels: int, out_channels: int, blocks: int, *, stride: int = 1) -> nn.Sequential:
    """Basic blocks of which the first changes channels and size; the others keep both, so they can be left out."""
    rest = [BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride=stride), *rest)


class UNet(nn.Module):
    """Levels of basic blocks on ever smaller images, then back up, each level beside its like on the way down.

    Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation"
    <https://arxiv.org/abs/1505.04597>, with residual blocks for pairs of convolutions and strides for pooling, as in
    Zhang et al. 2017, "Road Extraction by Deep Residual U-Net" <https://arxiv.org/abs/1711.10684>.

    Args:
        in_channels: channels of the image.
        classes: outputs per pixel.
        width: channels at full size; every level below doubles them.
        levels: levels below the full size; each halves the image.
        blocks: basic blocks per level.
        dropout: before the head.
    """

    def __init__(
        self, in_channels: int, classes: int, *, width: int, levels: int, blocks: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(levels + 1)]
        self.stem = _level(in_channels, width, blocks)
        pairs = list(pairwise(sizes))
        self.down = nn.ModuleList(_level(upper, lower, blocks, stride=2) for upper, lower in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(lower, upper, 2, stride=2) for upper, lower in reversed(pairs))
        self.up = nn.ModuleList(_level(2 * upper, upper, blocks) for upper, _ in reversed(pairs))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.head:  # its fan-out is as small as `classes`
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> [N, classes, H, W]; H and W are multiples of 2 ** levels."""
        passed = [self.stem(x)]
        for level in self.down:
            passed.append(level(passed[-1]))
        out = passed.pop()
        for grow, level in zip(self.grow, self.up, strict=True):
            out = level(torch.cat([passed.pop(), grow(out)], dim=1))
        pixels: Tensor = self.head(self.drop(out))
        return pixels


def unet(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 16,
    levels: int = 2,
    blocks: int = 1,
    dropout: float = 0.0,
) -> UNet:
    """U-Net with residual blocks: logits or values for every pixel.

    Args:
        shape: (channels, height, width) of one image, both sides multiples of 2 ** `levels`.
        classes: outputs per pixel: classes, or the channels of an image that is regressed.
        width: channels at full size; every level below doubles them.
        levels: how many times the image is halved.
        blocks: basic blocks per level; all but the first of a level can be left out of an elastic network.
        dropout: before the head, in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    channels, high, wide = checks.image(shape)
    checks.counts(classes=classes, width=width, levels=levels, blocks=blocks)
    checks.divides("2 ** levels", 2**levels, "height", high)
    checks.divides("2 ** levels", 2**levels, "width", wide)
    rate = checks.share("dropout", dropout)
    return UNet(channels, classes, width=width, levels=levels, blocks=blocks, dropout=rate)
