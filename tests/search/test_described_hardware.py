"""A search for a machine that is known by its description only."""

from pathlib import Path

import pytest
import torch

import pliant
from pliant.core import PliantError
from pliant.export import ProbeSettings
from pliant.export.network_text import read_line
from pliant.export.probes import probes_of
from pliant_runtime.probes import Description, Reading


def clock(text: str) -> float:
    """Milliseconds on that machine."""
    return 0.01 + sum(line.macs + line.values for line in map(read_line, text.splitlines())) / 1e5


def test_latency_is_predicted_for_the_described_machine(tmp_path: Path) -> None:
    net = pliant.elastic(pliant.nets.mlp((1, 8, 8), 4, hidden=(64, 64)), torch.zeros(2, 1, 8, 8))
    probes = probes_of(net, ProbeSettings(operators=8, networks=10, checks=3))
    readings = tuple(Reading(probe.name, probe.role, probe.text, clock(probe.text), 0.0) for probe in probes)
    path = Description("a small board", 4, 0.01, 9.0, readings).save(tmp_path / "board.hardware.json")
    board = pliant.hardware(path)
    front = pliant.search(net, objectives=("parameters", "latency"), hardware=board, n_trials=8, run=tmp_path / "run")
    assert len(front.trials) == 8
    for point in front.trials:
        wanted = board.latency(net.extract(point.config), net.example).median_ms
        assert point.values["latency_ms"] == pytest.approx(wanted)
    fastest = front.best("latency")
    assert fastest.values["latency_ms"] < 0.8 * max(point.values["latency_ms"] for point in front.trials)
    large = pliant.elastic(pliant.nets.mlp((1, 8, 8), 4, hidden=(512, 512)), net.example)
    with pytest.raises(PliantError, match="measured were networks of"):
        board.latency(large.extract(large.space.largest()), net.example)
