"""ResNet-50 for 224 x 224 images, written by hand: 3-4-6-3 bottleneck blocks, 25.6 M parameters.

He et al. 2015, "Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>, table 1.
"""

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.conv = _conv(inputs, inner, 1), _conv(inner, inner, 3, stride)
        self.expand = _conv(inner, outputs, 1)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.conv(torch.relu(self.reduce(x))))
        return torch.relu(self.expand(out) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            inner = 64 * 2**stage
            for number in range(count):
                blocks.append(Bottleneck(inputs, inner, 4 * inner, 2 if stage and not number else 1))
                inputs = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.pool(torch.relu(self.stem(x)))).mean((2, 3)))
        return logits
