"""Separate training: fresh starts of every size, trainings that are kept, and what is read back."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.core import PliantError
from pliant.data import Dataset
from pliant.elastic import Elastic, elastic, separate
from pliant.elastic.separate import fresh_start, separated, spread_factor
from pliant.learn import Settings, evaluate

QUIET = Settings(progress=False, batch_size=32, lr=1e-2)


def digits() -> Dataset:
    return pliant.data.load("digits", limit=200)


def whole(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )


def family() -> Elastic:
    return elastic(whole(), digits().example(2))


@pytest.mark.parametrize(
    ("start", "rule"),
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), "in"),
        (lambda w: nn.init.kaiming_normal_(w), "in"),
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), "out"),
        (lambda w: nn.init.xavier_uniform_(w), "both"),
        (lambda w: nn.init.normal_(w, std=0.02), "none"),
    ],
)
def test_a_part_is_spread_as_a_fresh_weight_of_its_size(start: object, rule: str) -> None:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    shape, part = (128, 96, 3, 3), (128, 24, 3, 3) if rule in ("in", "none") else (32, 96, 3, 3)
    weight, own = torch.empty(shape), torch.empty(part)
    start(weight), start(own)  # type: ignore[operator]
    torch.set_rng_state(generator_state)
    cut = weight[: part[0], : part[1]] * spread_factor(weight, part)
    assert float(cut.std()) == pytest.approx(float(own.std()), rel=0.03)
    assert (spread_factor(weight, part) == 1) == (rule == "none")


def test_what_is_not_cut_starts_as_it_is() -> None:
    weight = torch.randn(8, 8) / math.sqrt(8)
    assert spread_factor(weight, (8, 8)) == 1
    assert spread_factor(torch.ones(8), (4,)) == 1


def test_a_start_knows_nothing_of_the_familys_training() -> None:
    net, fresh = family(), whole()
    pliant.train(net, digits(), epochs=1, settings=QUIET)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = net.space.smallest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = fresh_start(net, fresh, small)
    kept = int(small["width:0"])
    state = module.state_dict()
    conv: Tensor = fresh.get_parameter("0.weight")
    assert torch.equal(state["0.weight"], conv[:kept])  # one input channel as before: the spread is right
    head: Tensor = fresh.get_parameter("4.weight")
    cut = head[:, : kept * 36]
    assert torch.allclose(state["4.weight"], cut * math.sqrt(16 / kept))
    assert torch.equal(state["1.running_mean"], torch.zeros(kept))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_kernels_start_as_crops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    net = elastic(model, torch.zeros(2, 1, 8, 8), choices={"kernel:*": (3, 5)})
    with torch.no_grad():
        net.get_parameter("kernel_transforms.0.to3").mul_(7)
    start = fresh_start(net, model, net.space.largest().replace({"kernel:0": 3}))
    assert start.get_parameter("0.weight").shape[-1] == 3
    wide = model.get_parameter("0.weight")
    assert torch.allclose(start.get_parameter("0.weight"), wide[..., 1:4, 1:4] * 5 / 3)  # 9 of 25 inputs are left


def test_another_network_is_no_fresh_start() -> None:
    with pytest.raises(PliantError, match=r"fresh is not the network of this family.*before training"):
        fresh_start(family(), nn.Linear(3, 3), family().space.smallest())


def test_trainings_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = family(), digits()
    configs = [net.space.largest(), net.space.smallest(), net.space.largest()]
    found = separate(net, data, configs=configs, fresh=whole(), epochs=2, run=tmp_path, settings=QUIET)
    assert [one.config for one in found] == configs[:2]
    assert all(one.cpu_seconds > 0 and one.epochs == 2 for one in found)
    assert found[0].val == pytest.approx(evaluate(found[0].module, data.val))
    assert found[0].val is not None and found[0].val > 0.5  # noqa: PT018
    rows = json.loads((tmp_path / "separate.json").read_text())["networks"]
    assert [row["val"] for row in rows] == [one.val for one in found]

    read = separated(tmp_path, net)
    assert read == found
    x = data.val.inputs[:16]
    for one, other in zip(found, read, strict=True):
        assert torch.equal(one.module(x), other.module(x))

    steps: list[object] = []
    monkeypatch.setattr(pliant.learn.Plain, "step", lambda *a, **k: steps.append(a))
    again = separate(net, data, configs=configs[:1], fresh=whole(), epochs=2, run=tmp_path, settings=QUIET)
    assert again == found[:1]
    assert not steps
    assert len(separated(tmp_path, net)) == 1  # those asked for last


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    net = family()
    separate(net, digits(), configs=[net.space.smallest()], fresh=whole(), epochs=1, run=tmp_path, settings=QUIET)
    (path,) = tmp_path.glob("separate/*/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(PliantError, match=r"weights\.safetensors.*its content is not what was written"):
        separated(tmp_path, net)


def test_without_a_run_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = family()
    assert len(separate(net, digits(), configs=[net.space.smallest()], fresh=whole(), epochs=1, settings=QUIET)) == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="at least one sub-network"):
        separate(net, digits(), configs=[], fresh=whole())
