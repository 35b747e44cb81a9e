"""Kernel sizes of an elastic network, and the matrices that make smaller kernels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pliant_runtime
from pliant.core import Selection
from pliant.deploy import compile
from pliant.elastic import Elastic, elastic
from pliant.elastic.recipes import Nested, Sandwich
from pliant.testing import Subject, check
from tests.elastic.conv_nets import Audio, Large, Video, stirred

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
KERNELS = {"kernel:*": [1, 3, 5, 7]}
SMALL = {"kernel:stem": 3, "kernel:deep": 1, "kernel:group": 3, "kernel:same": 1}


def large() -> nn.Module:
    return stirred(Large())


def family(choices: Any = None) -> Elastic:
    return elastic(large(), IMAGES, choices=choices or KERNELS)


def train_transforms(net: Elastic) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("kernel_transforms."):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def by_hand(net: nn.Module, sizes: tuple[int, int, int, int]) -> Large:
    """The same class with smaller kernels, filled with centre crops."""
    narrow = Large(sizes)
    wide = net.state_dict()
    for name, tensor in narrow.state_dict().items():
        crop = wide[name]
        if tensor.dim() == 4:
            border = (crop.shape[-1] - tensor.shape[-1]) // 2
            crop = crop[:, :, border : crop.shape[2] - border, border : crop.shape[3] - border]
        tensor.copy_(crop)
    return narrow


@pytest.mark.parametrize("training", [False, True])
def test_smaller_kernels_equal_the_same_class_filled_by_hand(training: bool) -> None:
    net = family().train(training)
    narrow = by_hand(large(), (3, 1, 3, 1)).train(training)
    small = net.extract(SMALL)
    with net.using(SMALL):
        torch.testing.assert_close(net(IMAGES), narrow(IMAGES), rtol=1e-6, atol=1e-6)
    narrow = by_hand(large(), (3, 1, 3, 1)).train(training)
    torch.testing.assert_close(small(IMAGES), narrow(IMAGES), rtol=1e-6, atol=1e-6)
    assert {n: t.shape for n, t in small.named_parameters()} == {n: t.shape for n, t in narrow.named_parameters()}
    assert net.cost(SMALL).parameters == sum(p.numel() for p in narrow.parameters())
    Elastic.extract(net.eval(), SMALL, into=narrow)


@pytest.mark.parametrize(
    ("net", "narrow", "example", "config"),
    [
        (Audio(9), Audio(5), torch.randn(2, 2, 20), {"kernel:first": 5}),
        (Video(3), Video(1), torch.randn(2, 3, 4, 6, 6), {"kernel:conv": 1}),
    ],
    ids=["1d", "3d"],
)
def test_one_and_three_dimensions(net: nn.Module, narrow: nn.Module, example: Any, config: dict[str, int]) -> None:
    choices = {"kernel:first": [5, 9]} if isinstance(net, Audio) else {"kernel:*": [1, 3]}
    stirred(net)
    for name, tensor in narrow.state_dict().items():
        crop = net.state_dict()[name]
        if crop.shape != tensor.shape:
            for axis in range(2, crop.dim()):
                crop = crop.narrow(axis, (crop.shape[axis] - tensor.shape[axis]) // 2, tensor.shape[axis])
        tensor.copy_(crop)
    made = elastic(net, example, choices=choices).eval()
    with made.using(config):
        torch.testing.assert_close(made(example), narrow.eval()(example))


def test_transforms_start_as_identities_and_are_parameters() -> None:
    net = family()
    found = {name: p for name, p in net.named_parameters() if name.startswith("kernel_transforms.")}
    assert {name.removeprefix("kernel_transforms."): tuple(p.shape) for name, p in found.items()} == {
        "stem.to5": (25, 25), "stem.to3": (9, 9), "stem.to1": (1, 1), "deep.to3": (9, 9), "deep.to1": (1, 1),
        "group.to3": (9, 9), "group.to1": (1, 1), "same.to1": (1, 1),
    }  # fmt: skip
    assert all(torch.equal(p, torch.eye(len(p))) and p.requires_grad for p in found.values())
    assert set(found) <= set(net.state_dict())
    assert not [name for name in elastic(large(), IMAGES).state_dict() if "kernel_transforms" in name]


def test_a_trained_chain_equals_the_formula() -> None:
    net = family().eval()
    train_transforms(net)
    get = net.get_parameter
    five = get("stem.weight")[:, :, 1:6, 1:6].reshape(16, 3, 25) @ get("kernel_transforms.stem.to5").T
    three = five.reshape(16, 3, 5, 5)[:, :, 1:4, 1:4].reshape(16, 3, 9) @ get("kernel_transforms.stem.to3").T
    wanted = three.reshape(16, 3, 3, 3)
    small = net.extract({"kernel:stem": 3, "width:stem": 4})
    torch.testing.assert_close(small.state_dict()["stem.weight"], wanted[:8])  # a unit is a group
    torch.testing.assert_close(net.extract({"kernel:stem": 5}).state_dict()["stem.weight"], five.reshape(16, 3, 5, 5))


def test_trained_transforms_change_only_smaller_kernels() -> None:
    net, plain = family().eval(), family().eval()
    train_transforms(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))
    for knob, size in SMALL.items():
        with net.using({knob: size}), plain.using({knob: size}):
            assert not torch.allclose(net(IMAGES), plain(IMAGES)), knob
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        config = net.sample(generator)
        small = net.extract(config)
        with net.using(config):
            torch.testing.assert_close(net(IMAGES), small(IMAGES), rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_used_matrices_alone() -> None:
    net = family().train()
    with net.using({"kernel:stem": 3}):
        net(IMAGES).square().mean().backward()
    got = {n for n, p in net.named_parameters() if "kernel_transforms" in n and p.grad is not None and p.grad.any()}
    assert got == {"kernel_transforms.stem.to5", "kernel_transforms.stem.to3"}
    touched = {name: net.touched()[p] for name, p in net.named_parameters()}
    assert touched["kernel_transforms.stem.to3"] == (slice(None), slice(None))
    assert touched["kernel_transforms.stem.to1"] == (slice(0, 0), slice(0, 0))
    assert touched["stem.weight"][2:] == (slice(1, 6), slice(1, 6))  # the 3x3 kernel is made of the whole 5x5 one
    net.clear_touched()
    net(IMAGES).sum().backward()
    assert net.touched()[net.get_parameter("kernel_transforms.stem.to3")] == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize("recipe", [Nested(whole=0.0), Sandwich(random=1)])
def test_recipes_train_them(recipe: Any) -> None:
    net = family().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    batch = (IMAGES, torch.tensor([0, 1]))
    generator = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(8):
        recipe.step(net, batch, F.cross_entropy, generator=generator).backward()
        recipe.update(net, optimizer)
        optimizer.zero_grad()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert {"kernel_transforms.stem.to5", "kernel_transforms.stem.to3", "stem.weight"} <= moved


def test_sources_leave_out_what_a_matrix_makes() -> None:
    net = family()
    ranges = net.sources(SMALL)["stem.weight"][1]
    assert ranges == [((0, 16),), None, ((2, 5),), ((2, 5),)]
    train_transforms(net)
    assert "stem.weight" not in net.sources(SMALL)
    assert "stem.weight" in net.sources({})
    assert "stem.bias" in net.sources(SMALL)
    assert net.reads(SMALL)["stem.weight"][2:] == [((1, 6),), ((1, 6),)]
    assert net.reads(SMALL)["kernel_transforms.stem.to5"] == [None, None]


def test_save_and_load(tmp_path: Path) -> None:
    net = family().eval()
    train_transforms(net)
    net.get_parameter("kernel_transforms.same.to1").requires_grad_(False)
    net.activate(SMALL)
    net.save(tmp_path / "net")
    back = Elastic.load(tmp_path / "net")
    assert torch.equal(back(IMAGES), net(IMAGES))
    assert back.space == net.space
    assert {n for n, p in back.named_parameters() if not p.requires_grad} == {"kernel_transforms.same.to1"}
    assert back.cost(SMALL) == net.cost(SMALL)


def test_the_state_dict_of_the_original_leaves_transforms_as_they_are() -> None:
    net, other = family().eval(), large().eval()
    train_transforms(net)
    kept = net.get_parameter("kernel_transforms.stem.to5").clone()
    with torch.no_grad():
        other.head.bias.add_(1.0)  # type: ignore[union-attr, operator]
    net.load_state_dict(other.state_dict())
    assert torch.equal(net(IMAGES), other(IMAGES))
    assert torch.equal(net.get_parameter("kernel_transforms.stem.to5"), kept)


def test_artifacts_hold_transformed_weights_apart(tmp_path: Path) -> None:
    net = family().eval()
    train_transforms(net)
    configs = [{}, {"kernel:stem": 3}, SMALL]
    compile(net, tmp_path / "art", configs=configs)
    loaded = pliant_runtime.load(tmp_path / "art")
    assert max(loaded.check().values()) < 1e-4
    for entry in loaded.entries:
        with net.using(entry.config), torch.no_grad():
            wanted = net(IMAGES)
        got = loaded.run(IMAGES.numpy(), config=entry.config, preprocessed=True)
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


def test_units_are_chosen_and_sorted_around_the_taps() -> None:
    net = family().eval()
    train_transforms(net)
    with net.using(SMALL):
        before = net(IMAGES)
    net.sort_units()
    with net.using(SMALL):
        torch.testing.assert_close(net(IMAGES), before, rtol=1e-5, atol=1e-6)
    chosen = net.extract(Selection({"width:stem": [1, 3]}))
    assert chosen.state_dict()["stem.weight"].shape == (4, 3, 7, 7)
    with pytest.raises(ValueError, match="kernel:stem"):
        net.extract(Selection({"kernel:stem": [0, 1, 2]}))
    with pytest.raises(ValueError, match="kernel:stem"):
        net.sort_units({"kernel:stem": [1.0] * 7})


def test_the_report_counts_taps() -> None:
    report = family().report()
    assert "4 kernels" in report.headline()
    assert "7 taps   1/3/5/7" in str(report)
    assert any(r.module == "bare" and "padding" in r.reason for r in report.rigid)


def test_laws() -> None:
    subject = Subject("kernels", large, lambda: IMAGES, choices=KERNELS)
    assert not [str(verdict) for verdict in check(subject) if not verdict.holds]
