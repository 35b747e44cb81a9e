"""The simulator: deterministic, conserving, and the promises of the adaptive rule in it."""

import random

import pytest

from pliant_runtime.serving.controller import POLICIES, Controller, Settings
from pliant_runtime.serving.simulate import BUSY, QUIET, Noise, answer, arrivals, at_load, capacity, compared, simulate
from pliant_runtime.serving.table import Table
from pliant_runtime.serving.trace import ANSWERED, Phase, Sample, percentile, profile, split, summary

SLO = Settings(slo_s=0.05)
UNIT = 1 / 0.0054  # what the largest network of `conv` can do


def test_arrivals_have_the_rate_of_their_phase() -> None:
    times = arrivals([Phase(100, 20), Phase(0, 5), Phase(400, 20)], seed=1)
    first, pause, last = (sum(a <= t < b for t in times) for a, b in ((0, 20), (20, 25), (25, 45)))
    assert first == pytest.approx(2000, rel=0.08)
    assert pause == 0
    assert last == pytest.approx(8000, rel=0.05)
    assert times == sorted(times)
    assert arrivals([Phase(100, 2)], seed=1) != arrivals([Phase(100, 2)], seed=2)


def test_one_server_without_noise_answers_as_by_hand() -> None:
    table = Table((1,), ((0.010,),), (1.0,))
    samples = simulate(Controller(table, Settings(slo_s=0.1)), [0.0, 0.001, 0.5])
    assert [sample.latency for sample in samples] == pytest.approx([0.010, 0.019, 0.010])


def test_the_same_seed_gives_the_same_run(conv: Table) -> None:
    times = arrivals([Phase(500, 1)], seed=3)
    runs = [simulate(Controller(conv, SLO), times, noise=BUSY, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("noise", [QUIET, BUSY], ids=["quiet", "busy"])
def test_the_step_is_absorbed(conv: Table, noise: Noise) -> None:
    found = compared(conv, SLO, profile("step", rate=UNIT, seconds=4), noise=noise)
    ours, largest, smallest = found["adaptive"], found["largest"], found["smallest"]
    assert ours["shed"] == 0
    assert ours["in_slo_share"] >= 0.995
    assert ours["quality"] >= smallest["quality"] + 0.5 * (largest["quality"] - smallest["quality"])
    assert largest["in_slo_of_offered"] < 0.6
    assert ours["phases"][0]["quality"] > ours["phases"][1]["quality"]
    assert all(figures["offered"] == figures["answered"] + figures["shed"] for figures in found.values())


FASHION = (1.32, 1.62, 2.45, 3.44, 7.34, 9.03)  # measured: 32 images on six widths of a residual network


@pytest.fixture
def fashion(conv: Table) -> Table:
    return Table((1, 32), tuple((ms / 1e3, 32 * ms / 1e3) for ms in FASHION), conv.quality)


@pytest.mark.parametrize(
    ("noise", "of_offered"),
    [
        (Noise(0.3, spikes_per_s=5.0, spike_s=0.01), 0.999),
        (Noise(0.1, ours_s=0.008, away_s=0.004), 0.98),
        (Noise(0.1, ours_s=0.004, away_s=0.004), 0.90),
    ],
    ids=["slices-stolen", "two-thirds-of-a-core", "half-a-core"],
)
def test_a_core_shared_with_others_costs_size_and_not_answers(fashion: Table, noise: Noise, of_offered: float) -> None:
    settings = Settings(slo_s=6 * 0.00903)
    found = compared(fashion, settings, profile("step", rate=1 / 0.00903, seconds=8), noise=noise)
    ours, smallest = found["adaptive"], found["smallest"]
    assert ours["in_slo_share"] >= 0.995
    assert ours["in_slo_of_offered"] >= of_offered
    assert ours["in_slo_of_offered"] >= smallest["in_slo_of_offered"] - 0.01  # nobody could do better than this one
    assert ours["quality"] > smallest["quality"] + 0.5


def test_a_shared_core_is_away_as_long_as_it_is_said_to_be() -> None:
    table = Table((1,), ((0.001,),), (1.0,))
    times = [0.002 * step for step in range(5000)]
    noise = Noise(ours_s=0.004, away_s=0.004)
    control = Controller(table, Settings(slo_s=10.0))
    samples = simulate(control, times, noise=noise)
    assert samples[-1].at + samples[-1].latency == pytest.approx(10.0, rel=0.05)  # five seconds of work at half a core
    assert simulate(Controller(table, Settings(slo_s=10.0)), times, noise=noise) == samples


def test_tenfold_overload_sheds_and_keeps_what_it_let_in(conv: Table) -> None:
    figures = at_load(conv, SLO, 40 * UNIT, requests=6000)
    assert figures["shed"] > 1000
    assert figures["in_slo_share"] == 1.0


def test_capacity_is_that_of_the_smallest_and_the_largest(conv: Table) -> None:
    held = {name: capacity(conv, SLO, name=name, requests=400) / UNIT for name in POLICIES}
    assert 0.5 < held["largest"] < 1.05
    assert held["adaptive"] > 20
    assert held["adaptive"] == pytest.approx(held["smallest"], rel=0.1)


def test_nothing_is_held_where_the_promise_is_impossible() -> None:
    assert capacity(Table((1,), ((0.1,),), (1.0,)), SLO, requests=50) == 0.0


def test_the_answer_tells_loads_and_stops_where_it_sheds() -> None:
    found = answer(Table((1,), ((0.004,), (0.02,)), (0.8, 0.9)), Settings(slo_s=0.2), requests=150)
    loads = found["loads"]
    assert found["largest_alone"] == pytest.approx(50)
    assert loads[0]["held"]
    assert not loads[-1]["held"]
    assert loads[-1]["load"] < 20
    assert loads[0]["quality"] > loads[-1]["quality"]
    assert found["dynamic_range"] == pytest.approx(5)


def test_a_noisy_machine_is_as_much_slower_as_it_says() -> None:
    draw, noise = random.Random(0), Noise(spread=0.5, spikes_per_s=2.0, spike_s=0.1)
    taken = [noise.seconds(0.01, draw) for _ in range(20000)]
    assert noise.slowdown == pytest.approx(1.8)
    assert sum(taken) / 20000 / 0.01 == pytest.approx(noise.slowdown, rel=0.05)


def test_figures_of_a_run() -> None:
    samples = [Sample(0.1, 0.010, ANSWERED, 0), Sample(1.2, 0.060, ANSWERED, 1), Sample(1.3, 0.0, "shed")]
    figures = summary(samples, 0.05, {0: 1.0, 1: 3.0})
    assert (figures["offered"], figures["answered"], figures["shed"]) == (3, 2, 1)
    assert figures["quality"] == 2.0
    assert figures["in_slo_share"] == 0.5
    assert figures["p99_ms"] == pytest.approx(60)
    assert [len(part) for part in split(samples, [Phase(1, 1), Phase(1, 1)])] == [1, 2]
    assert summary([], 0.05, {})["p50_ms"] is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_profiles_are_named() -> None:
    assert [phase.rate for phase in profile("step", rate=10, seconds=1)] == [5, 30, 5]
    with pytest.raises(ValueError, match="there are constant"):
        profile("wave", rate=1, seconds=1)
