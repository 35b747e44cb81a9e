"""Contests at equal cost: the rival's epochs, the sizes that are compared, and what is told."""

from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from bench import _common as common
from bench import _contests as contests
from bench import _costs as costs
from bench import _families as families
from bench import bignas, ofa
from bench._contests import Duel
from bench._families import Job, Task
from bench._recipes import RECIPES, Uniform
from bench.train_once import SEEDS, SHARES
from pliant.core import seeded

TINY = Task("digits", blocks=(1, 1), width=8)


def test_the_rival_trains_as_long_as_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "step_ratio", lambda ours, theirs, data: 4.4)
    ours = [bignas.DUEL.job(0, lr) for lr in bignas.DUEL.rates]
    theirs = contests.equally_dear(ours, "uniform", families.dataset(TINY))
    assert [job.lr for job in theirs] == list(bignas.DUEL.rates)
    assert {job.epochs for job in theirs} == {round(4.4 * bignas.DUEL.epochs)}
    assert isinstance(theirs[0].made_recipe(), Uniform)


def test_costs_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sub-networks a step cost more than one; the ratio that was measured decides all later runs."""
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(costs, "PROBED_STEPS", 3)
    job, data = Job(TINY, 1, 3e-3, 32, 0, recipe="bignas"), families.dataset(TINY)
    ratio = costs.step_ratio(job, replace(job, recipe="uniform"), data)
    assert ratio > 1.5
    monkeypatch.setattr(costs, "_steps_of", lambda *_: pytest.fail("measured again"))
    assert costs.step_ratio(job, replace(job, recipe="uniform"), data) == ratio


def test_every_recipe_of_a_contest_makes_its_steps() -> None:
    net = families.family(ofa.DUEL.task).train()
    batch = torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
    for name, recipe in RECIPES.items():
        assert replace(ofa.DUEL.job(0, 1e-3), recipe=name).made_recipe() == recipe()
        loss = recipe().at(0.9).step(net, batch, torch.nn.functional.cross_entropy, generator=seeded(0))
        assert torch.isfinite(loss)


def test_the_plain_supernet_draws_every_knob_by_itself() -> None:
    net = families.family(TINY)
    generator = seeded(0)
    drawn = [Uniform().draw(net, generator) for _ in range(200)]
    assert {len(configs) for configs in drawn} == {1}
    knob = next(knob for knob in net.space if len(knob.choices) > 2)
    shares = [sum(configs[0][knob.name] == value for configs in drawn) / 200 for value in knob.choices]
    assert min(shares) > 0.5 / len(knob.choices)


def test_the_network_of_ofa_bends_in_kernels_depth_and_width() -> None:
    net = families.family(ofa.DUEL.task)
    kinds = {knob.kind for knob in net.space}
    assert kinds == {"kernel", "depth", "width"}
    assert {knob.choices for knob in net.space if knob.kind == "kernel"} == {(3, 5)}
    assert any(name.startswith("kernel_transforms.") for name, _ in net.named_parameters())


def test_picks_of_a_large_space_follow_the_flops_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "_DRAWS", 400)
    net = families.family(ofa.DUEL.task)
    picks = contests.drawn_picks(net, SHARES)
    full = net.cost(net.space.largest()).flops
    assert picks[0] == net.space.largest()
    assert [net.cost(pick).flops / full for pick in picks] == pytest.approx(SHARES, rel=0.15)
    assert picks == contests.drawn_picks(net, SHARES)


def test_a_duel_tells_gains_costs_and_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours gets 1 point more than the rival at every size, at 0.9 times the cost."""
    ours = {"bignas": 0.91, "uniform": 0.9}
    duel = Duel(TINY, "bignas", "uniform", 3, (1e-3, 3e-3))
    trained: list[Job] = []

    def run_job(job: Job) -> dict[str, Any]:
        trained.append(job)
        return {"cpu_seconds": 9.0 if job.recipe == "bignas" else 10.0, "val": job.lr}

    monkeypatch.setattr(contests, "step_ratio", lambda *_: 2.0)
    monkeypatch.setattr(families, "run_job", run_job)
    monkeypatch.setattr(families, "best_rate", lambda tried: max(tried))
    monkeypatch.setattr(families, "qualities", lambda job, configs, *_: [ours[job.recipe]] * len(configs))
    picks = [families.family(TINY).space.largest()] * len(SHARES)
    found = contests.fought(duel, picks, families.dataset(TINY))
    assert found.figures["gain_points"] == pytest.approx(1.0)
    assert found.figures["worst_gain_points"] == pytest.approx(1.0)
    assert found.figures["cost_ratio"] == pytest.approx(0.9)
    assert mean(found.rival.values()) == pytest.approx(0.9)
    assert set(found.rival) <= set(found.figures)
    assert found.cpu_seconds == pytest.approx(6 * 9 + 6 * 10)  # two rates, three seeds
    assert {job.seed for job in trained} == set(SEEDS)
    assert set(ofa.REQUIRED) | set(bignas.REQUIRED) <= set(found.figures)
