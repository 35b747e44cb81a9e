"""A family whose training was killed, and that is trained on, has the weights of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pliant.elastic import Elastic, OnePass
from pliant.learn import Callback, State
from tests.elastic.kill_me import RECIPES, STEPS, run

ROOT = Path(__file__).parents[2]


class Stop(Callback):
    """Raises at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: State) -> None:
        assert state.steps == STEPS
        if state.step == self.step:
            raise ZeroDivisionError


def assert_same(net: Elastic | OnePass, other: Elastic | OnePass) -> None:
    for (name, value), there in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, there), name
    x = torch.randn(4, 1, 6, 6)
    if isinstance(net, OnePass) or isinstance(other, OnePass):
        with torch.no_grad():
            assert torch.equal(net.eval()(x), other.eval()(x))
        return
    config = net.space.smallest()
    with torch.no_grad(), net.eval().using(config), other.eval().using(config):
        assert torch.equal(net(x), other(x))  # what statistics are estimated from is the same as well


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_in_every_third_of_the_training(name: str, tmp_path: Path) -> None:
    for step in (5, 13, 20):
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "run", name, Stop(step))
    assert_same(run(tmp_path / "run", name), run(None, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_killed(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for step in (10, 22):
        command = [sys.executable, "-m", "tests.elastic.kill_me", str(tmp_path / "run"), name, str(step)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert_same(run(tmp_path / "run", name), run(None, name))
