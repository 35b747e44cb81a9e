"""Real processes: the command, two workers, kill -9 under load, SIGTERM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant_runtime.serving.load import Client, Target, discover, drive
from pliant_runtime.serving.trace import Phase, Sample


@pytest.fixture
def server(artifact: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Two workers with a promise that a busy machine keeps too, and their address."""
    command = [sys.executable, "-m", "pliant_runtime", "serve", str(artifact), "--slo-ms", "20000", "--port", "0"]
    pipe = subprocess.PIPE
    running = subprocess.Popen([*command, "--workers", "2", "--drain-s", "0.2"], stdout=pipe, stderr=pipe, text=True)
    try:
        assert running.stderr is not None
        yield running, json.loads(running.stderr.readline())["address"]
    finally:
        running.kill()
        running.communicate()


def workers(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_killed_worker_is_replaced_and_sigterm_ends_well(server: tuple["subprocess.Popen[str]", str]) -> None:
    running, address = server

    async def main() -> tuple[list[Sample], dict[str, object], int]:
        client = Client(address, connections=8)
        target: Target = await discover(client)
        load = asyncio.create_task(drive(client, target, [Phase(40, 3.0)]))
        await asyncio.sleep(1.0)
        first = workers(running.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        samples = await load
        until = time.monotonic() + 20
        while len(after := workers(running.pid)) < 2 and time.monotonic() < until:
            await asyncio.sleep(0.05)
        assert len(set(after) - set(first)) == 1
        fresh = Client(address)  # connections of the killed one may still lie in the old client's pool
        stats = (await fresh.call("GET", "/v2/stats")).json()
        await client.close()
        await fresh.close()
        return samples, stats["counters"], len(after)

    samples, counters, alive = asyncio.run(main())
    failed = sum(sample.outcome == "failed" for sample in samples)
    assert len(samples) > 60
    assert failed <= 8  # what was in flight on its connections
    assert all(sample.outcome in ("answered", "failed") for sample in samples)
    assert max(sample.at for sample in samples if sample.outcome == "answered") > 2.5
    assert (counters["restarts"], alive) == (1, 2)
    running.send_signal(signal.SIGTERM)
    _, logged = running.communicate(timeout=30)
    assert running.returncode == 0
    events = [json.loads(line)["event"] for line in logged.splitlines()]
    assert events.count("draining") == 2
    assert events[-1] == "stopped"


def test_what_cannot_be_served_is_said_in_one_line(artifact: Path, tmp_path: Path) -> None:
    def failing(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "pliant_runtime", *words], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "promise" in failing("serve", str(artifact), "--slo-ms", "0.0001", "--port", "0")
    assert "program.json" in failing("simulate", str(tmp_path), "--slo-ms", "10")


class Heavy(nn.Module):
    """64 MB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 4096), nn.Linear(4096, 4096)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def private_mb(pid: int) -> float:
    """Memory that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def test_workers_share_the_memory_of_the_networks_those_rearranged_too(tmp_path: Path) -> None:
    from pliant.deploy import compile

    torch.manual_seed(0)
    path = compile(Heavy().eval(), tmp_path / "heavy", example=torch.randn(2, 64))
    command = [sys.executable, "-m", "pliant_runtime", "serve", str(path), "--slo-ms", "20000", "--port", "0"]
    running = subprocess.Popen(
        [*command, "--workers", "2", "--drain-s", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stderr is not None
        address = json.loads(running.stderr.readline())["address"]

        async def ask() -> None:
            for _ in range(12):  # a connection each, so that both workers have computed
                client = Client(address)
                target = await discover(client)
                rows = np.ones((2, 64), np.float32)
                shape = {"name": target.inputs[0]["name"], "shape": [2, 64], "datatype": "FP32"}
                body = json.dumps({"inputs": [shape | {"data": rows.ravel().tolist()}]}).encode()
                assert (await client.call("POST", target.path, body)).status == 200
                await client.close()

        asyncio.run(ask())
        assert [private_mb(pid) < 40 for pid in workers(running.pid)] == [True, True]
    finally:
        running.terminate()
        running.communicate(timeout=30)
