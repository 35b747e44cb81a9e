"""Networks that are trained just enough to have statistics of their own."""

import pytest
import torch
from torch import Tensor, nn

from pliant.elastic import Elastic, elastic


class Residual(nn.Module):
    """A small convolutional network with BatchNorm and a residual block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv, self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.inner(self.conv(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images [count, 8, 8] of three kinds that differ in brightness, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (count,), generator=generator)
    noise = torch.randint(0, 60, (count, 8, 8), generator=generator)
    return (noise + 80 * kinds[:, None, None]).to(torch.uint8), kinds


@pytest.fixture(scope="session")
def data() -> tuple[Tensor, Tensor]:
    return images(400)


@pytest.fixture(scope="session")
def family_net() -> Elastic:
    torch.manual_seed(0)
    return elastic(Residual(), torch.randn(4, 1, 8, 8))
