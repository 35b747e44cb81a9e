"""A latency table as a convolutional family has it, and a trained artifact of three sub-networks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant_runtime.serving.table import Table
from tests.serve.servers import background

ROWS = (1, 2, 4, 8, 16, 32)
CONV_MS = (0.2, 0.5, 1.0, 2.0, 3.5, 5.4)  # cost per row does not fall with the batch
QUALITY = (85.4, 86.4, 87.2, 87.9, 88.3, 88.6)


@pytest.fixture(scope="session")
def conv() -> Table:
    return Table(ROWS, tuple(tuple(ms / 1e3 * rows for rows in ROWS) for ms in CONV_MS), QUALITY)


@pytest.fixture(scope="session")
def matmul() -> Table:
    """Two networks for which 32 rows cost three times what one row costs."""
    lines = tuple(tuple(ms / 1e3 * (1 + 2 * (rows - 1) / 31) for rows in ROWS) for ms in (1.0, 3.0))
    return Table(ROWS, lines, (0.8, 0.9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sub-networks that take raw uint8 [6] and tell three classes apart."""
    from pliant.deploy import compile
    from pliant.elastic import elastic

    x = np.random.default_rng(0).integers(0, 256, (300, 6), dtype=np.uint8)
    torch.manual_seed(0)
    net = elastic(Net(), torch.randn(4, 6))
    generator = torch.Generator().manual_seed(1)
    configs = [net.space.smallest(), net.space.sample(generator), net.space.largest()]
    data = (x, x[:, :3].argmax(1).astype(np.int64))
    return compile(net, tmp_path_factory.mktemp("serve") / "net.pliant", configs=configs, data=data)


@pytest.fixture(scope="session")
def address(artifact: Path) -> Iterator[str]:
    with background(artifact) as found:
        yield found
