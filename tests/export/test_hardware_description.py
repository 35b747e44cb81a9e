"""Descriptions of machines: what they are fitted to, what they state, and what they refuse."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pliant.core import Config, Knob, PliantError, Space
from pliant.export import DescribedHardware, ProbeSettings, hardware, network_text, probe_family, to_onnx
from pliant.export.latency_model import fit_latency, rank_correlation
from pliant.export.network_text import read_line
from pliant.export.probes import probes_of, spread_configs
from pliant_runtime.probes import Description, Reading, read_probes

SETTINGS = ProbeSettings(operators=20, networks=20, checks=6)
WIDTHS = (4, 8, 12, 16, 24, 32)


class Family:
    """Two convolutions and a head, of any two widths."""

    space = Space([Knob("width:a", WIDTHS), Knob("width:b", WIDTHS)])
    example = torch.zeros(2, 3, 12, 12)

    def extract(self, config: Config) -> nn.Module:
        a, b = int(config["width:a"]), int(config["width:b"])
        convs = [nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 5)).eval()


@pytest.fixture(scope="module")
def probes() -> Any:
    return probes_of(Family(), SETTINGS)


def clock(text: str) -> float:
    """A machine on which work takes time that is known."""
    lines = [read_line(line) for line in text.splitlines()]
    return 0.02 + sum(0.001 + 0.05 * line.macs / 1e6 + 0.2 * line.values / 1e6 for line in lines)


def described(probes: Any, time_of: Callable[[str], float] = clock, noise: float = 0.01) -> Description:
    readings = tuple(Reading(p.name, p.role, p.text, time_of(p.text), 0.0) for p in probes)
    return Description("a machine, 4 logical cores", 2, noise, 12.0, readings)


def net(a: int, b: int) -> nn.Module:
    return Family().extract(Config({"width:a": a, "width:b": b}))


def test_probes_are_distinct_operators_and_networks_of_all_sizes(probes: Any) -> None:
    roles = [probe.role for probe in probes]
    assert (roles.count("whole"), roles.count("check")) == (20, 6)
    assert 10 <= roles.count("operator") <= 20
    assert len({probe.text for probe in probes}) == len(probes)
    assert all(len(probe.text.splitlines()) == 1 for probe in probes if probe.role == "operator")
    wholes = [probe.text for probe in probes if probe.role == "whole"]
    assert any("weights 4x3x3x3" in text and "weights 4x4x3x3" in text for text in wholes)
    assert any("weights 32x3x3x3" in text and "weights 32x32x3x3" in text for text in wholes)


def test_a_known_clock_is_learned(probes: Any) -> None:
    model = fit_latency(described(probes))
    assert model.median_relative_error < 0.02
    assert model.rank_correlation == 1.0
    assert model.checks == 6
    text = network_text(to_onnx(net(12, 24), Family.example, check=False))
    assert model.milliseconds(text) == pytest.approx(clock(text), rel=0.03)


def test_what_a_sum_cannot_say_is_corrected(probes: Any) -> None:
    def kinked(text: str) -> float:
        work = sum(read_line(line).macs for line in text.splitlines()) / 1e6
        return clock(text) * (1 + 0.4 * work / (0.3 + work))

    model = fit_latency(described(probes, kinked))
    assert model.residual is not None
    assert model.median_relative_error < 0.04


def test_networks_outside_of_what_was_measured_are_refused(probes: Any) -> None:
    model = fit_latency(described(probes))
    wide = network_text(to_onnx(nn.Sequential(net(32, 32), nn.Linear(5, 60000)), Family.example, check=False))
    with pytest.raises(PliantError, match=r"measured were networks of .* probes of this network"):
        model.milliseconds(wide)
    odd = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(PliantError, match="was not measured on this hardware"):
        model.milliseconds(network_text(to_onnx(odd, Family.example, check=False)))


def test_noise_above_the_differences_is_refused(probes: Any) -> None:
    with pytest.raises(PliantError, match=r"noise is 90\.0%.*measure with nothing else"):
        fit_latency(described(probes, noise=0.9))
    flat = described(probes, lambda text: 1.0 + 1e-4 * len(text))
    with pytest.raises(PliantError, match="noise is"):
        fit_latency(dataclasses.replace(flat, noise=0.2))


def test_a_description_predicts_for_the_machine_it_is_from(probes: Any, tmp_path: Path) -> None:
    path = described(probes).save(tmp_path / "pi4.hardware.json")
    machine = hardware(path)
    assert isinstance(machine, DescribedHardware)
    assert (machine.name, machine.threads, machine.machine) == ("pi4.hardware.json", 2, "a machine, 4 logical cores")
    small, large = net(4, 8), net(24, 32)
    found = machine.compare({"small": small, "large": large, "again": net(24, 32)}, Family.example)
    assert found.faster("small", "large") is True
    assert found.faster("large", "again") is None
    text = network_text(to_onnx(large, Family.example, check=False))
    assert machine.latency(large, Family.example).median_ms == pytest.approx(clock(text), rel=0.03)
    assert machine.to_dict()["description"] == machine.description.digest()
    with pytest.raises(ValueError, match="measured with 2 threads, got threads=1"):
        hardware(path, threads=1)
    with pytest.raises(ValueError, match="single rows"):
        machine.latency(small, Family.example, batch=4)
    with pytest.raises(TypeError, match="predicts modules"):
        machine.compare({"a": lambda: None})
    with pytest.raises(PliantError, match="cannot be measured from here"):
        machine.describe(Family())


def test_damaged_descriptions_are_refused(probes: Any, tmp_path: Path) -> None:
    path = described(probes).save(tmp_path / "x.hardware.json")
    content = json.loads(path.read_text())
    content["version"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(PliantError, match="version is 99"):
        hardware(path)
    with pytest.raises(PliantError, match="cannot be read"):
        hardware(tmp_path / "missing.json")


def test_this_machine_is_described_and_the_description_read_again(tmp_path: Path) -> None:
    folder = probe_family(Family(), tmp_path / "probes", settings=ProbeSettings(6, 6, 3))
    assert len(read_probes(folder)) == 15
    try:
        machine = hardware("cpu", threads=1).describe(
            Family(), out=tmp_path / "here.hardware.json", seconds=0.3, settings=ProbeSettings(6, 8, 3), progress=False
        )
    except PliantError as error:  # a machine busy with other things may be too noisy, and says so
        pytest.skip(f"too noisy: {error}")
    assert machine.latency(net(16, 16), Family.example).median_ms > 0
    assert hardware(tmp_path / "here.hardware.json").to_dict()["description"] == machine.description.digest()


def test_ranks_count_only_pairs_that_are_far_apart() -> None:
    measured = np.asarray([1.0, 1.05, 2.0])
    assert rank_correlation(measured, np.asarray([1.05, 1.0, 3.0])) == 1.0
    assert rank_correlation(measured, np.asarray([3.0, 1.0, 2.0])) == 0.0
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 1.0


def test_configs_spread_and_respect_conditions() -> None:
    space = Space([Knob("depth:a", (1, 2)), Knob("width:b", (1, 2, 3), when={"depth:a": 2}), Knob("width:c", WIDTHS)])
    configs = spread_configs(space, 20, seed=0)
    assert configs[:2] == [space.smallest(), space.largest()]
    assert len(set(configs)) == 20
    assert all(("width:b" in config) == (config["depth:a"] == 2) for config in configs)
    assert len(spread_configs(space, 1000, seed=0)) <= space.size


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="networks must be at least 4, got 2"):
        ProbeSettings(networks=2)
    with pytest.raises(ValueError, match="ask for fewer"):
        probes_of(Family(), ProbeSettings(networks=60))
    with pytest.raises(ValueError, match="seconds must be above 0"):
        hardware().describe(Family(), seconds=0)
