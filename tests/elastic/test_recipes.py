"""Recipes: which sub-networks a step runs, and that an update reaches nothing else."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pliant import nets
from pliant.core import Config, seeded
from pliant.elastic import Elastic, elastic
from pliant.elastic.recipes import Nested, Plain, Sandwich
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.elastic.recipes._distil import soft_loss
from pliant.learn import HasRecipe, Settings, cross_entropy, mse, next_token, train

RECIPES = [Nested(), Nested(whole=1.0), Nested(whole=0.0, subnets=3), Sandwich(), Sandwich(random=0)]


def make(model: nn.Module, example: Tensor) -> Elastic:
    return elastic(model, example, verbose=False)


@pytest.fixture
def mlp() -> Elastic:
    torch.manual_seed(0)
    return make(nets.mlp((6,), 3, hidden=(16, 12)), torch.randn(4, 6)).train()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = seeded(0, "batch")
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_nested_draws_the_whole_network_as_often_as_it_says(mlp: Elastic) -> None:
    generator, largest = seeded(0, "draws"), mlp.space.largest()
    draws = [Nested(whole=0.4, smallest=0.0, lean=1.0, spread=0.0).draw(mlp, generator) for _ in range(2000)]
    assert all(len(configs) == 1 for configs in draws)
    share = sum(configs[0] == largest for configs in draws) / 2000
    expected = 0.4 + 0.6 / 4  # a drawn size in the upper quarter is the whole network as well
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5


def test_nested_reaches_every_subnetwork_and_the_small_ones_often(mlp: Elastic) -> None:
    generator = seeded(0, "ends")
    assert all(Nested(whole=1.0).draw(mlp, generator) == [mlp.space.largest()] for _ in range(50))
    found = [Nested(whole=0.0, spread=0.2).draw(mlp, generator)[0] for _ in range(2000)]
    assert set(found) == set(mlp.space.configs())
    assert sum(config == mlp.space.smallest() for config in found) > 2 * 2000 / mlp.space.size


def test_without_spread_the_knobs_of_a_kind_are_alike(mlp: Elastic) -> None:
    generator = seeded(0, "alike")
    found = [Nested(whole=0.0, smallest=0.0, lean=1.0, spread=0.0).draw(mlp, generator)[0] for _ in range(400)]
    places = [{knob.choices.index(config[knob.name]) for knob in mlp.space} for config in found]
    assert all(len(each) == 1 for each in places)
    counts = [sum(each == {place} for each in places) for place in range(4)]
    assert min(counts) > 70  # a quarter each


@pytest.mark.parametrize("lean", [0.5, 1.0, 2.0])
def test_draws_lean_to_small_sizes(mlp: Elastic, lean: float) -> None:
    generator = seeded(0, "lean")
    recipe = Nested(whole=0.0, smallest=0.0, lean=lean, spread=0.0)
    knob = next(iter(mlp.space))
    found = [knob.choices.index(recipe.draw(mlp, generator)[0][knob.name]) for _ in range(3000)]
    for place in range(4):  # a uniform number to the power `lean` lies between place / 4 and (place + 1) / 4
        expected = ((place + 1) / 4) ** (1 / lean) - (place / 4) ** (1 / lean)
        assert abs(found.count(place) / 3000 - expected) < 4 * (expected * (1 - expected) / 3000) ** 0.5


def test_a_lean_that_is_no_positive_number_is_refused() -> None:
    for lean in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lean must be a positive number"):
            Nested(lean=lean)


def test_sandwich_draws_both_ends_and_random_ones(mlp: Elastic) -> None:
    generator = seeded(0, "sandwich")
    draws = [Sandwich(random=3).draw(mlp, generator) for _ in range(50)]
    for configs in draws:
        assert len(configs) == 5
        assert configs[:2] == [mlp.space.largest(), mlp.space.smallest()]
    assert len({config for configs in draws for config in configs[2:]}) > 10
    assert Sandwich(random=0).draw(mlp, generator) == [mlp.space.largest(), mlp.space.smallest()]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_draws_repeat_under_a_generator(mlp: Elastic, recipe: ElasticRecipe) -> None:
    draws = [[recipe.draw(mlp, generator) for _ in range(20)] for generator in (seeded(3, "a"), seeded(3, "a"))]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Nested(whole=-0.1), r"whole must be in \[0, 1\], got -0.1"),
        (lambda: Nested(whole=1.1), r"whole must be in \[0, 1\], got 1.1"),
        (lambda: Nested(whole=float("nan")), r"whole must be in \[0, 1\], got nan"),
        (lambda: Nested(smallest=-0.1), r"smallest must be in \[0, 1\], got -0.1"),
        (lambda: Nested(spread=-0.5), "spread must not be negative, got -0.5"),
        (lambda: Sandwich(random=-1), "random must not be negative, got -1"),
        (lambda: Nested(subnets=0), "subnets must be at least 1, got 0"),
        (lambda: Sandwich(labels=1.5), r"labels must be in \[0, 1\], got 1.5"),
        (lambda: Nested().at(1.2), r"progress must be in \[0, 1\], got 1.2"),
    ],
)
def test_wrong_arguments(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_blocks_are_kept_more_often_than_not_and_every_set_of_them_is_drawn() -> None:
    net = make(nets.resnet((3, 8, 8), 3, blocks=(1, 3), width=8), torch.randn(4, 3, 8, 8))
    blocks = [knob.name for knob in net.space if knob.kind == "depth"]
    generator = seeded(1, "blocks")
    found = [Nested(whole=0.0, smallest=0.0).draw(net, generator)[0] for _ in range(1200)]
    kept = [tuple(config[name] for name in blocks) for config in found]
    assert len(blocks) >= 2
    assert len(set(kept)) == 2 ** len(blocks)
    share = sum(map(sum, kept)) / (len(kept) * len(blocks))
    assert abs(share - 0.75) < 0.05


def test_the_narrowest_is_drawn_as_often_as_it_says() -> None:
    net = make(nets.resnet((3, 8, 8), 3, blocks=(1, 2), width=8), torch.randn(4, 3, 8, 8))
    generator, smallest = seeded(2, "narrow"), net.space.smallest()
    widths = [knob.name for knob in net.space if knob.kind == "width"]
    found = [Nested(whole=0.2, smallest=0.3, lean=1.0, spread=0.0).draw(net, generator)[0] for _ in range(1500)]
    share = sum(all(config[name] == smallest[name] for name in widths) for config in found) / 1500
    assert abs(share - 0.8 * (0.3 + 0.7 / 4)) < 0.05  # a drawn size in the lowest quarter is the narrowest as well
    assert any(config["depth:stages.1.1"] for config in found if all(config[w] == smallest[w] for w in widths))


def test_nested_is_sorted_in_the_knobs_it_is_given(mlp: Elastic) -> None:
    recipe, generator = Nested(whole=0.0, knobs=("width:body.0",)), seeded(0, "knobs")
    found = [recipe.draw(mlp, generator)[0] for _ in range(200)]
    assert {config["width:body.0"] for config in found} == set(mlp.space["width:body.0"].choices)
    assert {config["width:body.2"] for config in found} == {12}
    both = [Nested(whole=0.0, knobs=("width:body.0", "width:body.2")).draw(mlp, generator)[0] for _ in range(200)]
    assert {config["width:body.2"] for config in both} == set(mlp.space["width:body.2"].choices)
    with pytest.raises(
        ValueError, match=r"knobs: 'heads:\*' fits no knob of MLP; knobs are width:body.0, width:body.2"
    ):
        Nested(knobs=("heads:*",)).draw(mlp, generator)


def test_sub_networks_of_a_step_are_those_of_as_many_steps(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    """The gradients of `subnets` draws on one batch are accumulated, averaged."""
    one, other = seeded(2, "draws"), seeded(2, "draws")
    Nested(subnets=3).step(mlp, batch, F.cross_entropy, generator=one).backward()  # type: ignore[no-untyped-call]
    together = {name: parameter.grad.clone() for name, parameter in mlp.named_parameters()}  # type: ignore[union-attr]
    mlp.zero_grad()
    for _ in range(3):
        (Nested().step(mlp, batch, F.cross_entropy, generator=other) / 3).backward()  # type: ignore[no-untyped-call]
    for name, parameter in mlp.named_parameters():
        assert torch.allclose(together[name], parameter.grad, atol=1e-7), name  # type: ignore[arg-type]


# -- a step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_a_step_is_a_differentiable_scalar_and_leaves_the_active_config(
    mlp: Elastic, batch: tuple[Tensor, Tensor], recipe: ElasticRecipe
) -> None:
    active = mlp.activate({"width:body.0": 8, "width:body.2": 6})
    loss = recipe.step(mlp, batch, F.cross_entropy, generator=seeded(0, "step"))
    assert loss.shape == ()
    assert loss.requires_grad
    assert mlp.active == active
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in mlp.parameters())


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_the_loss_is_the_mean_over_the_drawn_sub_networks(
    mlp: Elastic, batch: tuple[Tensor, Tensor], recipe: ElasticRecipe
) -> None:
    drawn = recipe.draw(mlp, seeded(5, "mean"))
    wanted = torch.stack([F.cross_entropy(mlp.extract(config)(batch[0]), batch[1]) for config in drawn]).mean()
    found = recipe.step(mlp, batch, F.cross_entropy, generator=seeded(5, "mean"))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_loss_that_raises_leaves_the_active_config(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    def fails(output: Tensor, targets: Tensor) -> Tensor:
        raise ArithmeticError("no loss today")

    with pytest.raises(ArithmeticError, match="no loss today"):
        Sandwich().step(mlp, batch, fails)
    assert mlp.active == mlp.space.largest()


def test_without_a_generator_torch_s_own_is_used(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(7)
        losses.append([float(Nested().step(mlp, batch, F.cross_entropy).detach()) for _ in range(10)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 1


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_a_plain_module_is_refused(recipe: ElasticRecipe, batch: tuple[Tensor, Tensor]) -> None:
    plain = nets.mlp((6,), 3, hidden=(8,))
    for action in (
        lambda: recipe.step(plain, batch, F.cross_entropy),
        lambda: recipe.update(plain, torch.optim.SGD(plain.parameters(), lr=0.1)),
        lambda: recipe.measured(plain, []),
    ):
        with pytest.raises(TypeError, match=r"elastic network, got MLP; make it one with pliant\.elastic"):
            action()


def _alone(net: Elastic, config: Config, batch: tuple[Tensor, Tensor]) -> Tensor:
    output: Tensor = net.extract(config)(batch[0])
    return output


@pytest.mark.parametrize("labels", [0.0, 0.3])
def test_in_place_distillation_by_hand(mlp: Elastic, batch: tuple[Tensor, Tensor], labels: float) -> None:
    recipe = Sandwich(random=1, distil=True, labels=labels)
    widest, *others = recipe.draw(mlp, seeded(4, "distil"))
    found = recipe.step(mlp, batch, F.cross_entropy, generator=seeded(4, "distil"))
    loss = F.cross_entropy(_alone(mlp, widest, batch), batch[1])
    soft = _alone(mlp, widest, batch).softmax(1)
    for config in others:
        output = _alone(mlp, config, batch)
        taught = F.cross_entropy(output, soft)
        loss = loss + labels * F.cross_entropy(output, batch[1]) + (1 - labels) * taught
    assert torch.allclose(found, loss / (1 + len(others)), atol=1e-6)


def test_no_gradient_flows_to_the_teacher(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    """What only the widest uses learns from the labels alone."""
    Sandwich(random=0, distil=True).step(mlp, batch, F.cross_entropy).backward()  # type: ignore[no-untyped-call]
    found = mlp.get_parameter("body.2.weight").grad
    mlp.zero_grad()
    (F.cross_entropy(mlp(batch[0]), batch[1]) / 2).backward()  # type: ignore[no-untyped-call]
    wanted = mlp.get_parameter("body.2.weight").grad
    assert found is not None
    assert wanted is not None
    assert torch.allclose(found[:, 4:], wanted[:, 4:], atol=1e-7)
    assert not torch.allclose(found[:3, :4], wanted[:3, :4], atol=1e-4)


def test_values_are_distilled_by_their_squared_error(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    targets = torch.randn(8, 3, generator=seeded(0, "values"))
    found = Sandwich(random=0, distil=True).step(mlp, (batch[0], targets), mse)
    widest, smallest = (_alone(mlp, c, batch) for c in (mlp.space.largest(), mlp.space.smallest()))
    assert torch.allclose(found, (F.mse_loss(widest, targets) + F.mse_loss(smallest, widest)) / 2, atol=1e-6)


def _cross(output: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher.softmax(-1) * output.log_softmax(-1)).sum(-1)


def test_soft_losses_find_the_classes() -> None:
    output, teacher = torch.randn(2, 2, 5, 7, generator=seeded(0, "logits")).unbind(0)
    last = torch.tensor([[0, 1, -100, 3, 4], [0, -100, 2, 3, 4]])
    wanted = _cross(output, teacher)[last != -100].mean()
    assert torch.allclose(soft_loss(output, teacher, last, next_token), wanted)
    second = soft_loss(output.movedim(2, 1), teacher.movedim(2, 1), last, cross_entropy)
    assert torch.allclose(second, wanted)
    square, taught = torch.randn(2, 2, 5, 5, generator=seeded(0, "square")).unbind(0)
    assert torch.allclose(soft_loss(square, taught, last, next_token), _cross(square, taught)[last != -100].mean())
    with pytest.raises(ValueError, match="axis 1 or last"):
        soft_loss(square, taught, last, cross_entropy)
    shares = torch.rand(2, 5)
    smooth = functools.partial(cross_entropy, label_smoothing=0.1)
    assert torch.allclose(soft_loss(output[:, 0, :5], teacher[:, 0, :5], shares, smooth),
                          _cross(output[:, 0, :5], teacher[:, 0, :5]).mean())  # fmt: skip
    assert torch.allclose(soft_loss(output[:, 0, :5], teacher[:, 0, :5], shares, mse),
                          F.mse_loss(output[:, 0, :5], teacher[:, 0, :5]))  # fmt: skip
    with pytest.raises(ValueError, match=r"must have the shape of the sub-network's, got \(2, 5\) .* \(2, 7\)"):
        soft_loss(output[:, 0, :5], teacher[:, 0], shares, mse)


def test_progress_is_handed_on_and_is_no_setting(mlp: Elastic) -> None:
    seen: list[float | None] = []

    @final
    @dataclass(frozen=True)
    class Watches(ElasticRecipe):
        def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
            seen.append(self.progress)
            return [net.space.smallest()]

    data = (torch.randn(40, 6), torch.arange(40) % 3)
    train(mlp, data, recipe=Watches(), epochs=2, settings=Settings(batch_size=8, accumulate=2, progress=False))
    steps = len(set(seen))
    assert sorted(set(seen)) == [i / steps for i in range(steps)]  # type: ignore[type-var]
    assert len(seen) > steps  # the batches of one update share it
    recipe = Nested()
    assert (recipe.at(0.5).progress, recipe.progress) == (0.5, None)
    assert recipe.at(0.5) == recipe
    assert Plain().at(0.5) == Plain()


# -- an update ---------------------------------------------------------------------------------------------------------


def _inside(net: Elastic, config: Config) -> dict[str, Tensor]:
    """Where a sub-network has its entries, by writing its own tensors back into zeros."""
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in net.state_dict().items()}
    for outer, axes in net.sources(config).values():
        mask = torch.ones_like(masks[outer])
        for axis, runs in enumerate(axes):
            line = torch.zeros(mask.shape[axis], dtype=torch.bool)
            for begin, end in runs if runs is not None else ((0, len(line)),):
                line[begin:end] = True
            mask &= line.view([-1 if a == axis else 1 for a in range(mask.dim())])
        masks[outer] = mask
    return masks


def _nets() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "mlp": (nets.mlp((6,), 3, hidden=(16, 12)), torch.randn(4, 6)),
        "resnet": (nets.resnet((3, 8, 8), 3, blocks=(1, 2), width=8), torch.randn(4, 3, 8, 8)),
        "vit": (nets.vit((3, 8, 8), 3, patch=4, dim=16, depth=1, heads=4), torch.randn(4, 3, 8, 8)),
        "lstm": (nets.lstm((7, 6), 3, hidden=12), torch.randn(4, 7, 6)),
    }


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit", "lstm"])
def test_ten_adamw_steps_on_a_small_sub_network_leave_the_rest_bit_identical(name: str) -> None:
    model, x = _nets()[name]
    net = make(model, x).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.3)
    depth = [knob.name for knob in net.space if knob.kind == "depth"]
    config = net.space.smallest().replace(dict.fromkeys(depth[1:], True))
    before, inside = copy.deepcopy(net.state_dict()), _inside(net, config)
    recipe = Nested()
    for _ in range(10):
        with net.using(config):
            F.cross_entropy(net(x), torch.arange(4) % 3).backward()  # type: ignore[no-untyped-call]
        recipe.update(net, optimizer)
        optimizer.zero_grad()
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor[~inside[key]], before[key][~inside[key]]), key
    weights = [key for key, parameter in net.named_parameters() if inside[key].any() and parameter.dim() > 1]
    assert weights
    assert all(not torch.equal(net.state_dict()[key], before[key]) for key in weights)
    for key, parameter in net.named_parameters():
        for kind in ("exp_avg", "exp_avg_sq"):
            value = optimizer.state.get(parameter, {}).get(kind)
            assert value is None or not value[~inside[key]].any(), (key, kind)
            assert value is None or value.shape == parameter.shape
    assert net.touched() == {}


def test_spans_that_were_trained_before_do_not_decay_while_skipped() -> None:
    model, x = _nets()["resnet"]
    net = make(model, x).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.3)
    recipe = Nested(whole=1.0)
    for config in (net.space.largest(), net.space.largest().replace({"depth:stages.1.1": False})):
        before = net.get_parameter("stages.1.1.conv1.weight").detach().clone()
        optimizer.zero_grad(set_to_none=False)
        with net.using(config):
            F.cross_entropy(net(x), torch.arange(4) % 3).backward()  # type: ignore[no-untyped-call]
        recipe.update(net, optimizer)
        moved = not torch.equal(net.get_parameter("stages.1.1.conv1.weight"), before)
        assert moved == config["depth:stages.1.1"]


def test_gradients_of_several_steps_are_moved_together(mlp: Elastic, batch: tuple[Tensor, Tensor]) -> None:
    optimizer = torch.optim.AdamW(mlp.parameters(), lr=1e-2, weight_decay=0.3)
    before = copy.deepcopy(mlp.state_dict())
    for config in ({"width:body.0": 4, "width:body.2": 9}, {"width:body.0": 8, "width:body.2": 6}):
        with mlp.using(config):
            F.cross_entropy(mlp(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    Nested().update(mlp, optimizer)
    changed = (mlp.state_dict()["body.2.weight"] != before["body.2.weight"]).any(0)
    assert changed[:8].any()
    assert not changed[8:].any()
    assert not (mlp.state_dict()["body.2.weight"][9:] != before["body.2.weight"][9:]).any()


# -- training ----------------------------------------------------------------------------------------------------------


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=seeded(0, "digits"))
    inputs, targets = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return inputs[:1400], targets[:1400], inputs[1400:], targets[1400:]


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("recipe", [Nested(), Sandwich(random=1), Sandwich(random=1, distil=True)], ids=repr)
def test_a_loop_of_ones_own_trains_the_whole_family(recipe: ElasticRecipe) -> None:
    x, y, test_x, test_y = _digits()
    torch.manual_seed(0)
    net = make(nets.mlp((64,), 10, hidden=(64, 64)), x[:4]).train()
    optimizer, generator = torch.optim.AdamW(net.parameters(), lr=5e-3), seeded(0, "loop")
    for _ in range(12):
        for rows in torch.split(torch.randperm(len(x), generator=generator), 64):
            loss = recipe.step(net, (x[rows], y[rows]), F.cross_entropy, generator=generator)
            loss.backward()  # type: ignore[no-untyped-call]
            recipe.update(net, optimizer)
            optimizer.zero_grad()
    half = net.extract(net.space.uniform(0.5))
    assert half.get_parameter("body.2.weight").shape == (32, 32)
    assert _accuracy(half, test_x, test_y) > 0.85
    assert _accuracy(net.extract({}), test_x, test_y) > 0.90


def test_train_takes_the_network_s_own_recipe() -> None:
    x, y, test_x, test_y = _digits()
    torch.manual_seed(0)
    net = make(nets.mlp((64,), 10, hidden=(64, 64)), x[:4])
    assert isinstance(net, HasRecipe)
    assert net.default_recipe() == Nested()
    train(net, (x, y), epochs=8, settings=Settings(lr=5e-3, batch_size=32, progress=False))
    assert _accuracy(net.extract(net.space.uniform(0.5)), test_x, test_y) > 0.85
    assert _accuracy(net.extract({}), test_x, test_y) > 0.90


def test_what_is_measured_is_the_widest_with_its_own_statistics() -> None:
    model, x = _nets()["resnet"]
    net = make(model, x).train()
    before = copy.deepcopy(net.state_dict())
    measured = Nested().measured(net, [x])
    assert not isinstance(measured, Elastic)
    mean = F.conv2d(x, net.get_parameter("conv1.weight"), padding=1).mean((0, 2, 3))
    assert torch.allclose(measured.state_dict()["bn1.running_mean"], mean, atol=1e-6)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_recipes_compare_and_tell_their_settings() -> None:
    assert Nested() == Nested(whole=0.1) != Nested(whole=0.5)
    assert repr(Sandwich(random=1)) == "Sandwich(random=1, distil=False, labels=0.0)"
    assert repr(Sandwich().at(0.5)) == repr(Sandwich())
    assert Plain() == Plain()
    with pytest.raises(AttributeError):
        Nested().whole = 0.5  # type: ignore[misc]
