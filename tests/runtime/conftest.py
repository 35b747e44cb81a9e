"""One artifact of two sub-networks, and the means to tamper with copies of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.deploy import compile
from pliant.elastic import elastic


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return out


@pytest.fixture(scope="session")
def table() -> tuple[np.ndarray, np.ndarray]:
    """300 rows of uint8 [6], three classes by the largest of the first three columns."""
    x = np.random.default_rng(0).integers(0, 256, (300, 6), dtype=np.uint8)
    return x, x[:, :3].argmax(1).astype(np.int64)


@pytest.fixture(scope="session")
def original(table: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = elastic(Net(), torch.randn(4, 6))
    configs = [net.space.smallest(), net.space.largest()]
    return compile(net, tmp_path_factory.mktemp("artifact") / "net.pliant", configs=configs, data=table)


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "net.pliant"))
