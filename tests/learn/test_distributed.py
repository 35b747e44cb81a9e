"""Two processes give the result of one, go on where they were stopped, and do not wait for ever for one another."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pliant.core import PliantError, seeded
from pliant.learn import Settings, train
from tests.learn.together import CASES, SHARDED, convnet, fresh, images, mlp, run, vectors

ROOT = Path(__file__).parents[2]


def together(folder: Path, what: str, size: int = 2, **variables: str) -> list[subprocess.CompletedProcess[str]]:
    """Start processes that train together, and wait for them."""
    begun = []
    for rank in range(size):
        command = [sys.executable, "-m", "tests.learn.together", str(rank), str(size), str(folder), what]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), **variables}
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True))
    done = []
    for process in begun:
        out, err = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def trained(folder: Path, what: str, size: int = 2, **variables: str) -> Path:
    for process in together(folder, what, size, **variables):
        assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("two"), "equal,norm,refusals")


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert set(a) == set(b)
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_result_of_one(two: Path, name: str) -> None:
    net, history = run(CASES[name](0))
    alone = {**net.state_dict(), "losses": torch.tensor([record.loss for record in history.steps])}
    for kind in ("ddp", "fsdp2") if name in SHARDED else ("auto",):
        first, second = (load_file(two / f"{name}.{kind}.{rank}") for rank in range(2))
        close(first, second, 0.0)
        close(alone, first, 1e-6)
        assert float(first["losses"].max() - first["losses"].min()) > 1e-2  # something was trained


def test_running_statistics_are_the_mean_of_those_of_the_shares(two: Path) -> None:
    """By hand: two networks, each of which sees one half of every batch."""
    first, second = (load_file(two / f"norm.{rank}") for rank in range(2))
    close(first, second, 0.0)
    halves, inputs = [fresh(convnet, 0), fresh(convnet, 0)], images().train.inputs
    for epoch in range(3):
        order = torch.randperm(48, generator=seeded(1, "order", epoch))
        for batch in order.split(16):  # type: ignore[no-untyped-call]
            for net, half in zip(halves, batch.split(8), strict=True):
                net(inputs[half])
    names = [name for name in first if "running" in name]
    assert len(names) > 4
    for name in names:
        mean = torch.stack([net.state_dict()[name] for net in halves]).mean(0)
        torch.testing.assert_close(first[name], mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(halves[0].state_dict()[name], mean, rtol=1e-3)


def test_what_cannot_be_is_said_by_both(two: Path) -> None:
    first, second = (json.loads((two / f"heard.{rank}").read_text()) for rank in range(2))
    for heard in (first, second):
        assert "a family cannot be sharded" in heard["family"]
        assert "use distributed='ddp'" in heard["family"]
        assert "the processes train different things" in heard["arguments"]
        assert "the loss is nan at step 1" in heard["nan"]
        assert "a sample for each of the 2 processes, got 1" in heard["rows"]
    assert "process 0 could not begin" in second["folder"]
    assert "process 0 could not begin" not in first["folder"]


@pytest.mark.slow
def test_stopped_processes_go_on_with_the_same_bits(tmp_path: Path) -> None:
    trained(tmp_path, "stopped")
    for kind in ("ddp", "fsdp2", "family"):
        found = [
            load_file(tmp_path / f"{kind}.{part}.{rank}") for part in ("whole", "parts", "again") for rank in (0, 1)
        ]
        for other in found[1:]:
            close(found[0], other, 0.0)
        config = json.loads((tmp_path / f"{kind} whole" / "config.json").read_text())
        assert config["computed"]["processes"] == 2
        lines = (tmp_path / f"{kind} whole" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len(found[0]["losses"]) + 3
    net, data = mlp(0.3), vectors()
    begun = Settings(lr=0.01, batch_size=16, checkpoint_every=2)
    with pytest.raises(PliantError, match="begun by 2 processes, now there are 1"):
        train(net, data, epochs=3, run=tmp_path / "ddp whole", settings=begun, seed=1)


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_nobody_waits_for_ever(tmp_path: Path, how: str) -> None:
    together(tmp_path, how)
    heard = json.loads((tmp_path / f"{how}.0").read_text())
    assert "another process has failed or does not answer" in heard["error"]
    assert heard["seconds"] < 20


def test_the_settings_make_the_group_that_torchrun_describes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    trained(tmp_path, "torchrun", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2")
    net, _ = run(CASES["plain"](0))
    found = load_file(tmp_path / "torchrun.1")
    close(net.state_dict(), {name: tensor for name, tensor in found.items() if name != "losses"}, 1e-6)


def test_a_group_that_is_missing_is_named() -> None:
    with pytest.raises(PliantError, match=r"distributed='ddp', but this process belongs to no group.*torchrun"):
        train(mlp(), vectors(), settings=Settings(distributed="ddp"))
