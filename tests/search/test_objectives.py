import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core import Config, PliantError
from pliant.data import Dataset
from pliant.learn import evaluate
from pliant.search import Energy, Objective
from pliant.search.context import checked
from pliant.search.front import Axis
from pliant.search.identity import identity
from pliant.search.objectives import Candidate, Context, Reading, gauge, gauges
from pliant.search.physical import peak_bytes

CONFIG = Config({"width:first": 4, "depth:x": True})


@pytest.fixture
def context(net: Any, clock: Any, data: Dataset) -> Context:
    return Context(net, data.train, data.val, data.metric, clock, batch_size=8, calibration_batches=2)


def test_accuracy_is_that_of_the_calibrated_module_on_val(context: Context, net: Any, data: Dataset) -> None:
    accuracy = gauge("accuracy", context)
    candidate = Candidate(context, CONFIG)
    assert accuracy.axis == Axis("accuracy", True, "", "accuracy")
    expected = evaluate(candidate.module, data.val)
    assert accuracy.read(candidate) == Reading(expected)
    assert not candidate.module.training
    assert expected != evaluate(net.extract(CONFIG), data.val)
    batches = net.calibrations[0]
    assert [tuple(batch.shape) for batch in batches] == [(8, 4), (8, 4)]
    rows = {tuple(row.tolist()) for row in data.train.inputs}
    assert all(tuple(row.tolist()) in rows for row in torch.cat(batches))


def test_every_candidate_is_calibrated_on_the_same_batches(context: Context, net: Any) -> None:
    for config in (CONFIG, net.space.largest()):
        assert Candidate(context, config).module is not None
    assert net.calibrations[0] is net.calibrations[1]


def test_accuracy_follows_the_task(context: Context) -> None:
    regress = replace(context, metric="mse")
    assert gauge("accuracy", regress).axis == Axis("mse", False, "", "accuracy")
    assert gauge("rmse", regress).axis == Axis("rmse", False, "", "rmse")


def test_costs_come_from_the_network_without_extraction(context: Context, net: Any) -> None:
    candidate = Candidate(context, CONFIG)
    values = {name: gauge(name, context).read(candidate).value for name in ("flops", "parameters", "bytes")}
    assert values == {"flops": 56, "parameters": 28, "bytes": 112}
    assert net.extracted == []


def test_latency_is_measured_on_the_hardware(context: Context, clock: Any) -> None:
    latency = gauge("latency", context)
    assert gauge("latency_ms", context).axis == latency.axis == Axis("latency_ms", False, "ms", "latency")
    # 4 x 4 + 3 x 4 weights, 2 x 4 of BatchNorm
    assert latency.read(Candidate(context, CONFIG)) == Reading(36.0, 0.5)
    assert clock.asked == [[CONFIG.to_json()]]


def test_memory_is_the_most_that_is_alive_at_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(100, 1000, bias=False)
            self.b = nn.Linear(1000, 10, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = torch.relu(self.a(x))
            narrow: torch.Tensor = self.b(wide)
            del wide
            return torch.cat([narrow] * 3, dim=1).view(-1)

    weights, inputs = 4 * (100 * 1000 + 1000 * 10), 4 * 100
    # the product and its relu are alive together; after that there is only less
    assert peak_bytes(Two().eval(), torch.zeros(1, 100)) == weights + inputs + 2 * 4 * 1000
    inplace = nn.Sequential(nn.Linear(100, 1000, bias=False), nn.ReLU(inplace=True))
    assert peak_bytes(inplace.eval(), torch.zeros(1, 100)) == 4 * 100 * 1000 + inputs + 4 * 1000


def test_memory_and_energy_of_candidates(context: Context, net: Any) -> None:
    memory = gauge("memory", context)
    assert memory.axis == Axis("memory_bytes", False, "B", "memory")
    small, large = (memory.read(Candidate(context, config)).value for config in (CONFIG, net.space.largest()))
    assert 4 * 28 < small < large
    energy = gauge("energy", context)
    assert energy.axis == Axis("energy_uj", False, "µJ", "energy")
    # 56 operations and 112 bytes
    assert energy.read(Candidate(context, CONFIG)).value == pytest.approx((56 * 2.3 + 112 * 160) * 1e-6)
    own = gauge(Energy(pj_per_flop=1000, pj_per_byte=0), context)
    assert own.read(Candidate(context, CONFIG)).value == pytest.approx(0.056)
    assert own.depends() != energy.depends()
    for wrong in ({"pj_per_flop": -1.0}, {"pj_per_flop": 0.0, "pj_per_byte": 0.0}):
        with pytest.raises(ValueError, match="energies must not be negative"):
            Energy(**wrong)


def test_own_objectives(context: Context) -> None:
    def norm(module: nn.Module, config: Config) -> float:
        assert not module.training
        return float(config["width:first"])

    assert gauge(norm, context).axis == Axis("norm")
    own = gauge(Objective("size", norm, maximise=True, unit="units"), context)
    assert own.axis == Axis("size", True, "units")
    assert own.read(Candidate(context, CONFIG)) == Reading(4.0)
    with pytest.raises(ValueError, match="needs a name"):
        Objective("", norm)
    with pytest.raises(TypeError, match="needs a function"):
        Objective("x", 3)  # type: ignore[arg-type]


def test_unknown_objectives_list_the_choices(context: Context) -> None:
    with pytest.raises(ValueError, match="no objective called 'speed'; choose among accuracy, latency, flops"):
        gauge("speed", context)
    with pytest.raises(TypeError, match="an objective is a name"):
        gauge(3, context)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="write \\('accuracy',\\)"):
        gauges("accuracy", context)
    with pytest.raises(ValueError, match="at least one objective, and each once"):
        gauges([], context)
    with pytest.raises(ValueError, match="each once; got \\['flops', 'flops'\\]"):
        gauges(["flops", "FLOPs"], context)


def test_objectives_say_what_they_need(net: Any, clock: Any) -> None:
    with pytest.raises(ValueError, match="'accuracy' needs data"):
        gauge("accuracy", Context(net, hardware=clock))
    with pytest.raises(ValueError, match="latency needs hardware"):
        gauge("latency", Context(net)).read(Candidate(Context(net), CONFIG))


def test_readings_must_be_finite() -> None:
    assert checked(Reading(1.0), Axis("x"), CONFIG) == Reading(1.0)
    with pytest.raises(PliantError, match="objective x is nan for"):
        checked(Reading(float("nan")), Axis("x"), CONFIG)


def make(limit: float) -> Any:
    def objective(module: nn.Module, config: Config) -> float:
        return limit

    return objective


def other(module: nn.Module, config: Config, scale: float = 1.0) -> float:
    return scale


class Callable:
    def __call__(self, module: nn.Module, config: Config) -> float:
        return 0.0

    def method(self, module: nn.Module, config: Config) -> float:
        return 1.0


def test_functions_are_told_apart_by_code_and_plain_values() -> None:
    half = functools.partial(other, scale=0.5)
    found = [make(1.0), make(2.0), other, half, functools.partial(other, scale=0.6), Callable(), Callable().method, max]
    texts = [repr(identity(one)) for one in found]
    assert len(set(texts)) == len(found)
    assert repr(identity(make(1.0))) == texts[0]
    assert repr(identity(Callable())) == texts[5]
    assert not any(" at 0x" in text for text in texts)
