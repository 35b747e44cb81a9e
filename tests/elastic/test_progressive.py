"""ProgressiveShrinking: what each phase opens, who teaches, and that it trains."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import nets
from pliant.core import Config, seeded
from pliant.data import load
from pliant.elastic import Elastic, elastic
from pliant.elastic.recipes import ProgressiveShrinking
from pliant.elastic.recipes._distil import Teacher
from pliant.learn import Plain, Settings, evaluate, train
from pliant.learn.run_folder import fingerprint
from tests.elastic.conv_nets import Large, stirred

CHOICES = {"kernel:*": [3, 5, 7], "resolution:x": [12, 16]}
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def made() -> Elastic:
    """Kernels of 7, 5 and 3, widths and a resolution."""
    torch.manual_seed(0)
    return elastic(stirred(Large()), torch.randn(2, 3, 16, 16), choices=CHOICES, verbose=False)


@pytest.fixture
def net(made: Elastic) -> Elastic:
    return copy.deepcopy(made).train()


@pytest.fixture
def batch() -> Pair:
    generator = seeded(0, "batch")
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(5, (8,), generator=generator)


def _bent(net: Elastic, config: Config) -> set[str]:
    """The kinds of knobs that are smaller than whole."""
    return {knob.kind for knob in net.space if config[knob.name] != knob.choices[-1]}


def _drawn(recipe: ProgressiveShrinking, net: Elastic, progress: float, count: int = 60) -> list[Config]:
    generator = seeded(0, "draws")
    return [recipe.at(progress).draw(net, generator)[0] for _ in range(count)]


# -- phases ------------------------------------------------------------------------------------------------------------


def test_each_phase_opens_more(net: Elastic) -> None:
    """The shares are .15, .1, .1 and .65."""
    recipe = ProgressiveShrinking()
    seen = {}
    for progress in (0.0, 0.149, 0.151, 0.249, 0.251, 0.349, 0.351, 1.0):
        found = _drawn(recipe, net, progress)
        seen[progress] = set().union(*(_bent(net, config) for config in found))
        assert net.space.largest() in found
    assert seen[0.0] == seen[0.149] == {"resolution"}
    assert seen[0.151] == seen[0.249] == {"resolution", "kernel"}
    assert seen[0.251] == seen[0.349] == {"resolution", "kernel", "depth"}
    assert seen[0.351] == seen[1.0] == {"resolution", "kernel", "depth", "width"}
    assert {config["resolution:x"] for config in _drawn(recipe, net, 0.0)} == {12, 16}


def test_choices_open_from_the_largest_down(net: Elastic) -> None:
    recipe = ProgressiveShrinking(phases=(("whole", 1.0), ("depth", 1.0), ("kernel", 1.0), ("width", 1.0)))
    steps = [i / 400 for i in range(401)]
    spaces = [recipe.at(progress).open(net.space) for progress in steps]
    stem = [space["kernel:stem"].choices for space in spaces]
    width = [space["width:point"].choices for space in spaces]
    assert list(dict.fromkeys(stem)) == [(7,), (5, 7), (3, 5, 7)]
    assert list(dict.fromkeys(width)) == [net.space["width:point"].choices[i:] for i in (3, 2, 1, 0)]
    assert [stem.index(choices) for choices in dict.fromkeys(stem)] == [0, 200, 225]
    assert [width.index(choices) for choices in dict.fromkeys(width)] == [0, 300, 317, 334]
    for one, other in pairwise(spaces):
        assert all(set(one[knob.name].choices) <= set(other[knob.name].choices) for knob in net.space)
    assert spaces[-1] == net.space


def test_the_last_block_of_each_stage_closes_first() -> None:
    net = elastic(nets.resnet((3, 8, 8), 3, blocks=(3, 3), width=8), torch.randn(2, 3, 8, 8), verbose=False)
    spans = [knob.name for knob in net.space if knob.kind == "depth"]
    recipe = ProgressiveShrinking(phases=(("whole", 1.0), ("depth", 1.0)))
    opened = []
    for i in range(200):
        space = recipe.at(i / 200).open(net.space)
        opened.append(tuple(name for name in spans if len(space[name].choices) == 2))
        assert all(len(knob.choices) == 1 for knob in space if knob.kind == "width")  # their phase is not named
    assert spans == [f"depth:stages.{i}" for i in ("0.0", "0.1", "0.2", "1.1", "1.2")]
    first, second, third = (
        tuple(s for s in spans if s.endswith("2")),
        tuple(s for s in spans if s[-1] in "12"),
        (*spans,),
    )
    assert list(dict.fromkeys(opened)) == [(), first, second, third]


def test_phases_without_knobs_are_left_out() -> None:
    net = elastic(nets.mlp((6,), 3, hidden=(16, 12)), torch.randn(4, 6), verbose=False)
    recipe = ProgressiveShrinking()
    begun = 0.15 / 0.8  # whole .15, width .65
    assert set(_drawn(recipe, net, begun - 0.01)) == {net.space.largest()}
    assert len(set(_drawn(recipe, net, begun + 0.01))) > 2
    assert recipe.at(1.0).open(net.space) == net.space


def test_the_whole_network_goes_on_being_trained(net: Elastic) -> None:
    found = _drawn(ProgressiveShrinking(whole=0.5), net, 1.0, 400)
    whole = sum(not _bent(net, config) - {"resolution"} for config in found) / 400
    assert 0.45 < whole < 0.65
    assert net.space.smallest() in _drawn(ProgressiveShrinking(whole=0.0, spread=0.0), net, 1.0, 400)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ProgressiveShrinking(phases=()), r"different ones of whole, kernel, depth, width, got \[\]"),
        (lambda: ProgressiveShrinking(phases=(("heads", 1.0),)), r"different ones of .* got \['heads'\]"),
        (lambda: ProgressiveShrinking(phases=(("width", 1.0), ("width", 1.0))), "different ones of"),
        (lambda: ProgressiveShrinking(phases=(("width", 1.0), ("whole", 1.0))), "'whole' comes first"),
        (lambda: ProgressiveShrinking(phases=(("width", 0.0),)), "share of phase 'width' must be positive, got 0.0"),
        (lambda: ProgressiveShrinking(labels=-0.1), r"labels must be in \[0, 1\], got -0.1"),
        (lambda: ProgressiveShrinking(whole=2), r"whole must be in \[0, 1\], got 2"),
        (lambda: ProgressiveShrinking(subnets=0), "subnets must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_a_loop_that_does_not_say_where_it_is_is_refused(net: Elastic, batch: Pair) -> None:
    with pytest.raises(ValueError, match=r"say where it is: recipe.at\(done / steps\).step"):
        ProgressiveShrinking().step(net, batch, F.cross_entropy)
    with pytest.raises(TypeError, match=r"teacher must be a trained nn\.Module or None, got str"):
        ProgressiveShrinking(teacher="resnet")  # type: ignore[arg-type]


# -- teachers ----------------------------------------------------------------------------------------------------------


def _mixed(output: Tensor, soft: Tensor, batch: Pair, labels: float) -> Tensor:
    return labels * F.cross_entropy(output, batch[1]) + (1 - labels) * F.cross_entropy(output, soft.softmax(1))


def test_the_whole_network_teaches_in_place(net: Elastic, batch: Pair) -> None:
    recipe = ProgressiveShrinking(whole=0.0, labels=0.3).at(0.9)
    draws = ((seed, recipe.draw(net, seeded(seed, "in place"))[0]) for seed in range(99))
    seed, drawn = next(pair for pair in draws if pair[1]["width:bare"] < 12)
    with torch.no_grad():
        soft = net.extract({}).train()(batch[0])
    wanted = _mixed(net.extract(drawn).train()(batch[0]), soft, batch, 0.3)
    found = recipe.step(net, batch, F.cross_entropy, generator=seeded(seed, "in place"))
    assert torch.allclose(found, wanted, atol=1e-5)
    found.backward()  # type: ignore[no-untyped-call]
    outside = net.get_parameter("head.weight").grad
    kept = int(drawn["width:bare"])
    assert outside is not None
    assert outside[:, :kept].any()
    assert not outside[:, kept:].any()  # the teacher gets no gradient
    assert net.touched()[net.get_parameter("head.weight")][1] == slice(0, kept)


@pytest.mark.parametrize("progress", [0.0, 1.0], ids=["the first phase", "the whole network"])
def test_these_learn_from_labels_alone(net: Elastic, batch: Pair, progress: float) -> None:
    recipe = ProgressiveShrinking(whole=1.0, labels=0.0).at(progress)
    draws = ([seed, recipe.draw(net, seeded(seed, "labels"))[0]] for seed in range(99))
    seed, config = next(pair for pair in draws if progress == 0.0 or pair[1] == net.space.largest())
    found = recipe.step(net, batch, F.cross_entropy, generator=seeded(seed, "labels"))  # type: ignore[arg-type]
    assert torch.allclose(found, F.cross_entropy(net.extract(config).train()(batch[0]), batch[1]), atol=1e-5)


def test_a_given_teacher_teaches_and_never_changes(net: Elastic, batch: Pair) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    before = copy.deepcopy(model.state_dict())
    recipe = ProgressiveShrinking(phases=(("kernel", 1.0), ("width", 1.0)), labels=0.2, teacher=model).at(0.0)
    (drawn,) = recipe.draw(net, seeded(1, "given"))
    model.eval()
    with torch.no_grad():
        soft = model(batch[0])
    model.train()
    wanted = _mixed(net.extract(drawn).train()(batch[0]), soft, batch, 0.2)
    found = recipe.step(net, batch, F.cross_entropy, generator=seeded(1, "given"))
    assert torch.allclose(found, wanted, atol=1e-5)
    found.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(matrix.grad is not None for name, matrix in net.named_parameters() if "kernel_transforms" not in name)


def test_a_run_folder_knows_the_teacher(net: Elastic) -> None:
    """And where the training is does not make it another run."""
    data = load("digits")

    def text(recipe: ProgressiveShrinking) -> str:
        begun = fingerprint(net, data, recipe=recipe, epochs=1, settings=Settings(), seed=0)
        found: str = begun["recipe"]
        return found

    torch.manual_seed(0)
    one, other = nn.Linear(4, 5), nn.Linear(4, 5)
    recipe = ProgressiveShrinking(teacher=one)
    assert isinstance(recipe.teacher, Teacher)
    assert text(recipe) == text(ProgressiveShrinking(teacher=copy.deepcopy(one))) == text(recipe.at(0.5))
    assert text(recipe) != text(ProgressiveShrinking(teacher=other)) != text(ProgressiveShrinking())
    assert recipe == ProgressiveShrinking(teacher=one) != ProgressiveShrinking(teacher=other)
    assert "Linear(" in repr(recipe)
    assert len(repr(recipe)) < 300


# -- training ----------------------------------------------------------------------------------------------------------


def test_transforms_are_trained_from_the_kernel_phase_on(net: Elastic) -> None:
    data = (torch.randn(64, 3, 16, 16), torch.arange(64) % 5)
    moved: dict[str, dict[str, bool]] = {}
    for name, phases in {"whole": (("whole", 1.0),), "kernel": (("whole", 0.5), ("kernel", 0.5))}.items():
        family = copy.deepcopy(net)
        recipe = ProgressiveShrinking(phases=phases, whole=0.0)
        train(family, data, recipe=recipe, epochs=6, settings=Settings(batch_size=16, progress=False))
        matrices = {k: p for k, p in family.named_parameters() if k.startswith("kernel_transforms")}
        moved[name] = {k: not torch.equal(m, torch.eye(len(m))) for k, m in matrices.items()}
    assert moved["whole"]
    assert not any(moved["whole"].values())
    assert all(moved["kernel"].values())


@pytest.mark.parametrize("given", [False, True], ids=["in place", "a given teacher"])
def test_it_trains_a_family(given: bool) -> None:
    data = load("digits")
    torch.manual_seed(0)
    model = nets.resnet((1, 8, 8), 10, blocks=(1, 2), width=16)
    settings = Settings(lr=1e-2, batch_size=64, progress=False)
    recipe = ProgressiveShrinking()
    if given:
        train(model, data, recipe=Plain(), epochs=2, settings=settings)
        recipe = ProgressiveShrinking(phases=recipe.phases[1:], teacher=model)
    net = elastic(model, data.example(2), choices={"resolution:x": [6, 8]}, verbose=False)
    train(net, data, recipe=recipe, epochs=8, settings=settings)
    half = net.space.uniform(0.5).replace({"resolution:x": 8})
    for config, least in ((net.space.largest(), 0.93), (half, 0.75), ({"resolution:x": 6}, 0.85)):
        assert evaluate(net.extract(config), data.val) > least
