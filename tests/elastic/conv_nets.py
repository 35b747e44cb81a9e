"""Small networks with large kernels, for the tests of kernels and resolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import seeded


def stirred(net: nn.Module) -> nn.Module:
    """The network with random weights that do not depend on what was drawn before; no vector is constant."""
    generator = seeded(0, "stirred")
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(
                    drawn + 0.5 if "running_var" in name else (drawn - 0.5) * 2 / max(1, tensor[0].numel()) ** 0.5
                )
    return net


class Large(nn.Module):
    """Convolutions of every kind whose taps can bend: strided, dilated, depthwise, grouped, padded by name, shared.

    Args:
        sizes: kernel sizes of the stem, the depthwise, the grouped and the shared convolution.
    """

    def __init__(self, sizes: tuple[int, int, int, int] = (7, 5, 5, 3)) -> None:
        super().__init__()
        stem, deep, group, same = sizes
        self.stem = nn.Conv2d(3, 16, stem, stride=2, padding=stem // 2)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, deep, padding=2 * (deep // 2), dilation=2, groups=16)
        self.group = nn.Conv2d(16, 16, group, padding=group // 2, groups=8, bias=False)
        self.same = nn.Conv2d(16, 16, same, padding="same")
        self.point = nn.Conv2d(16, 12, 1)
        self.bare = nn.Conv2d(12, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.group(F.relu(self.deep(x)))
        x = self.same(self.same(x).tanh())
        x = self.bare(F.relu(self.point(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Audio(nn.Module):
    """One-dimensional convolutions; the second has less padding than half of its size."""

    def __init__(self, size: int = 9) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, size, padding=size // 2)
        self.second = nn.Conv1d(8, 8, 7, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, T] -> [N, 3]."""
        logits: Tensor = self.head(self.second(F.relu(self.first(x))).mean(-1))
        return logits


class Video(nn.Module):
    """A three-dimensional convolution."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, size, padding=size // 2)
        self.head = nn.Linear(8, 5)

    def forward(self, video: Tensor) -> Tensor:
        """[N, 3, D, H, W] -> [N, 5]."""
        logits: Tensor = self.head(F.relu(self.conv(video)).mean((2, 3, 4)))
        return logits
