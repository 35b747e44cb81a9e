"""A network that decides, served: rows of many requests together answer as each alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.deploy import compile
from pliant_runtime import load
from pliant_runtime.serving.model import Model, measure, open_model


class Exits(nn.Module):
    """Leaves early where the first head is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, 16), nn.Linear(16, 16)
        self.early, self.late = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        early: Tensor = self.early(h)
        if early.softmax(-1).max() > 0.5:
            return early
        late: Tensor = self.late(torch.relu(self.middle(h)))
        return late


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return compile(Exits().eval(), tmp_path_factory.mktemp("exits") / "net", example=torch.randn(1, 6))


def test_a_network_that_decides_is_served(exits: Path) -> None:
    family = load(exits)
    model = Model(family, measure(family, slo_s=1.0, rounds=1))
    draw = np.random.default_rng(0)
    requests = [[draw.standard_normal((rows, 6)).astype(np.float32)] for rows in (1, 4, 3)]
    ways = {tuple(way) for request in requests for row in request[0] for _, way in [family.trace(row[None])]}
    assert len(ways) == 2  # both exits are taken
    for request, outputs in zip(requests, model.run(0, requests), strict=True):
        alone = np.concatenate([np.asarray(family.run(row[None])) for row in request[0]])
        np.testing.assert_allclose(outputs[0], alone, rtol=1e-5, atol=1e-6)


def test_a_promise_nobody_can_keep_is_refused(exits: Path) -> None:
    with pytest.raises(ValueError, match="the promise is"):
        open_model(exits, slo_s=1e-6, seconds=0.0)
