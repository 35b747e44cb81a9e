"""Families against separate networks: fresh starts, picks, and trainings that come from the cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pliant
from bench import _common as common
from bench import _families as families
from bench._families import Job, Task

TINY = Task("digits", blocks=(1, 1), width=8)
JOB = Job(TINY, epochs=1, lr=3e-3, batch_size=256, seed=0)


def sorted_items(config: Any) -> tuple[tuple[str, int | bool], ...]:
    return tuple(sorted(config.items()))


def test_folds_are_disjoint_and_cover_every_image() -> None:
    sizes = [families.dataset(replace(TINY, fold=fold)).sizes for fold in range(5)]
    assert sum(size["test"] for size in sizes) == 1797
    assert all(sum(size.values()) == 1797 for size in sizes)


def test_picks_follow_the_flops_asked_for() -> None:
    net = families.family(TINY)
    shares = (1.0, 0.5, 0.25)
    full = net.cost(net.space.largest()).flops
    chosen = families.picks(net, shares)
    assert chosen[0] == net.space.largest()
    assert all(config[knob.name] is not False for config in chosen for knob in net.space)
    assert [net.cost(config).flops / full for config in chosen] == pytest.approx(shares, rel=0.1)


def test_a_fresh_start_is_that_of_the_class() -> None:
    """The whole network alone has the moments that `pliant.nets.resnet` gives its tensors."""
    net = families.family(TINY)
    fresh = dict(families.alone(TINY, net.space.largest(), 1).state_dict())
    own = dict(families.whole_network(TINY, 1).state_dict())
    assert {name: tensor.shape for name, tensor in fresh.items()}.items() <= {
        name: tensor.shape for name, tensor in own.items()
    }.items()
    for name, tensor in fresh.items():
        if tensor.numel() > 100:
            assert tensor.std() == pytest.approx(float(own[name].std()), rel=0.2), name
        elif tensor.dim() < 2 and not name.startswith("fc"):
            assert torch.equal(tensor, own[name]), name
    bound = fresh["fc.weight"].shape[1] ** -0.5
    assert float(fresh["fc.weight"].abs().max()) <= bound
    assert 0 < float(fresh["fc.bias"].abs().max()) <= bound


def test_fresh_starts_differ_by_seed_and_leave_torch_alone() -> None:
    config = families.family(TINY).space.smallest()
    before = torch.get_rng_state()
    first, same, other = (families.alone(TINY, config, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    name = "conv1.weight"
    assert torch.equal(first.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_training_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    data = families.dataset(TINY)
    facts = families.run_job(JOB)
    assert facts["cpu_seconds"] > 0
    assert 0 <= facts["val"] <= 1

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained twice")

    monkeypatch.setattr(families, "train", refuse)
    assert families.run_job(JOB) == facts
    net = families.trained(JOB)
    assert isinstance(net, pliant.Elastic)
    configs = [net.space.largest(), net.space.smallest()]
    monkeypatch.setattr(families, "dataset", lambda task: data)
    values = families.qualities(JOB, configs, "val")
    assert len(values) == 2
    monkeypatch.setattr(families, "quality", refuse)
    assert families.qualities(JOB, configs, "val") == values
    assert families.best_family([JOB], configs) == JOB
    assert data.__dict__["test_reads"] == 0  # all choices are made on val


def test_a_separate_training_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    job = replace(JOB, config=sorted_items(families.family(TINY).space.smallest()))
    families.run_job(job)
    net = families.trained(job)
    assert isinstance(net, nn.Module)
    data = families.dataset(TINY)
    assert pliant.evaluate(net, data.val) == pytest.approx(families.run_job(job)["val"])


def test_what_decides_a_training_decides_its_key() -> None:
    config = sorted_items(families.family(TINY).space.smallest())
    changes: list[tuple[str, Any]] = [("lr", 1e-3), ("seed", 1), ("config", config), ("precision", "bfloat16")]
    keys = {common.key_of(job.what()) for job in (JOB, *(replace(JOB, **{k: v}) for k, v in changes))}
    assert len(keys) == 5
    alone = replace(JOB, config=config)
    assert alone.what() == replace(alone, recipe="sandwich").what()


def test_the_cache_knows_trainings_by_the_same_content_as_ever() -> None:
    """Hours of trainings are found by exactly this; versions alone may be raised."""
    fashion = Task("fashion", (1, 1, 1), 16)
    told = {"task": {"data": "fashion", "blocks": (1, 1, 1), "width": 16, "fold": 0}, "epochs": 10, "lr": 6e-3,
            "batch_size": 128, "seed": 0, "config": {"depth:a": True, "width:b": 8}}  # fmt: skip
    alone = Job(fashion, 10, 6e-3, 128, 0, config=(("depth:a", True), ("width:b", 8)))
    assert alone.what()["training"] == told
    text = Job(Task("shakespeare-quarter", (3,), 64, net="gpt"), 14, 2e-3, 64, 1)
    assert text.what()["training"]["task"]["net"] == "gpt"
    assert Job(fashion, 10, 6e-3, 128, 0).what()["training"] == told | {"config": None, "recipe": "nested"}
