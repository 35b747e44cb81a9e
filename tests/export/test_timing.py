"""Latency: what is reported, and what is refused."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pliant.export import Hardware, hardware, to_onnx
from pliant.export.timing import Comparison, Latency, compare


def busy(microseconds: float) -> Callable[[], None]:
    def work() -> None:
        end = time.perf_counter() + microseconds / 1e6
        while time.perf_counter() < end:
            pass

    return work


def made(samples: dict[str, list[float]], noise: float = 0.01) -> Comparison:
    latencies = {}
    for name, values in samples.items():
        middle = sorted(values)[len(values) // 2]
        latencies[name] = Latency(middle, 0.0, min(values), middle, len(values), 3, 1)
    return Comparison(latencies, noise, {name: tuple(values) for name, values in samples.items()})


def test_a_call_of_known_length_is_measured() -> None:
    result = compare({"a": busy(500), "b": busy(1500)}, threads=1, rounds=11, seconds=5)
    assert 0.5 <= result["a"].min_ms <= result["a"].median_ms
    assert 1.5 <= result["b"].min_ms <= result["b"].median_ms
    assert result["a"].rounds == 11
    assert result["a"].threads == 1
    assert result.faster("a", "b") is True
    assert result.faster("b", "a") is False
    assert result.rank() == [["a"], ["b"]]


def test_the_same_work_is_never_ranked() -> None:
    result = compare({"a": busy(300), "b": busy(300)}, threads=1, rounds=15, seconds=5)
    assert result.faster("a", "b") is None
    assert len(result.rank()) == 1


def test_differences_below_the_noise_are_refused() -> None:
    fine = made({"a": [1.00] * 12, "b": [1.03] * 12}, noise=0.01)
    coarse = made({"a": [1.00] * 12, "b": [1.03] * 12}, noise=0.05)
    assert fine.faster("a", "b") is True
    assert coarse.faster("a", "b") is None


def test_drift_hits_both_candidates_of_a_round_and_cancels() -> None:
    drift = [1.0 + 0.2 * step for step in range(12)]
    result = made({"a": drift, "b": [1.1 * value for value in drift]})
    assert result.faster("a", "b") is True


def test_scatter_wider_than_the_difference_is_refused() -> None:
    spread = [1.0, 2.0, 0.5, 1.5, 0.7, 1.2] * 2
    result = made({"a": spread, "b": [1.05 * value for value in reversed(spread)]})
    assert result.faster("a", "b") is None


def test_ranking_knows_only_measured_names() -> None:
    with pytest.raises(ValueError, match="no candidate 'c'; measured are a"):
        made({"a": [1.0] * 3}).faster("a", "c")


def test_time_ends_the_rounds_but_not_before_eleven() -> None:
    result = compare({"a": busy(200)}, threads=1, rounds=1000, seconds=0.0)
    assert result["a"].rounds == 11


@pytest.mark.parametrize(("candidates", "rounds"), [({}, 10), ({"a": busy(1)}, 2)])
def test_measurements_without_meaning_are_refused(candidates: dict[str, Callable[[], None]], rounds: int) -> None:
    with pytest.raises(ValueError, match=r"candidates|rounds"):
        compare(candidates, threads=1, rounds=rounds, seconds=1)


def test_modules_models_and_functions_are_measured_side_by_side() -> None:
    small, large = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 2048), nn.Linear(2048, 16))
    example = torch.randn(2, 16)
    machine = hardware("cpu", threads=1)
    result = machine.compare({"small": small, "large": to_onnx(large, example), "none": lambda: None}, example)
    assert result.rank()[0] == ["none"]
    assert result.faster("small", "large") is True
    assert result["small"].iqr_ms >= 0


def test_batches_cost_more_than_rows() -> None:
    net = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 64))
    one, many = (hardware().latency(net, torch.randn(2, 64), batch=rows).median_ms for rows in (1, 256))
    assert many > 3 * one


def test_hardware_says_what_it_is() -> None:
    machine = hardware("cpu", threads=1)
    assert isinstance(machine, Hardware)
    assert machine.to_dict() == {"name": "cpu", "threads": 1, "machine": machine.machine}
    assert "logical cores" in machine.machine
    assert "onnxruntime" in machine.machine


def test_other_hardware_and_impossible_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="'tpu' is not known; choose cpu"):
        hardware("tpu")
    with pytest.raises(ValueError, match="threads must be from 1 to"):
        hardware("cpu", threads=0)
    with pytest.raises(ValueError, match="needs example inputs"):
        hardware().latency(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        hardware().latency(nn.Linear(2, 2), torch.randn(2, 2), batch=0)
