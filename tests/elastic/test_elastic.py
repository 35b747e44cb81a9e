"""An elastic network from the outside: choosing, running, taking out, costs, names."""

import copy
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import Config, PliantError, seeded
from pliant.elastic import Elastic, elastic


def mlp_of(*hidden: int, activation: str = "relu", classes: int = 3) -> nn.Module:
    return nets.mlp((6,), classes, hidden=hidden, activation=activation)


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(0, "floats"))


X = floats(4, 6)
IMAGES = floats(4, 3, 8, 8)
IDS = torch.randint(11, (3, 12), generator=seeded(0, "ids"))
HALF = {"width:body.0": 8, "width:body.2": 6}


def make(model: nn.Module, example: Any, **options: Any) -> Elastic:
    return elastic(model, example, **{"verbose": False, **options})


@pytest.fixture
def mlp() -> Elastic:
    torch.manual_seed(0)
    return make(mlp_of(16, 12).eval(), X)


@pytest.fixture(scope="module")
def resnet_once() -> Elastic:
    torch.manual_seed(0)
    return make(nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=8), IMAGES)


@pytest.fixture
def resnet(resnet_once: Elastic) -> Elastic:
    return copy.deepcopy(resnet_once)


@pytest.fixture(scope="module")
def gpt_once() -> Elastic:
    torch.manual_seed(0)
    return make(nets.gpt((12,), 11, dim=16, depth=2, heads=4).eval(), IDS)


@pytest.fixture
def gpt(gpt_once: Elastic) -> Elastic:
    return copy.deepcopy(gpt_once)


def run(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return net(*args, **kwargs)


def same(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance


# -- making ------------------------------------------------------------------------------------------------------------


def test_the_model_that_is_given_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nets.resnet((3, 8, 8), 5, blocks=(1,), width=8, dropout=0.2).train()
    model.stages.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    net = make(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    net.train()(IMAGES).sum().backward()
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_taken_over(training: bool) -> None:
    assert make(mlp_of(8).train(training), X).training is training


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"min_size": 0}, ValueError, "min_size must be at least 1, got 0"),
        ({"model": "resnet"}, TypeError, "model must be an nn.Module, got str"),
        ({"model": X.mean}, TypeError, "model must be an nn.Module"),
        ({"example": 3}, TypeError, "a tensor, a tuple"),
        ({"choices": {"width:x": [1.0]}}, ValueError, "'width:x' fits no knob"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    given = {"model": mlp_of(8), "example": X, **arguments}
    with pytest.raises(kind) as caught:
        make(given.pop("model"), given.pop("example"), **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_elastic_once_is_enough(mlp: Elastic) -> None:
    with pytest.raises(TypeError, match="elastic already"):
        make(mlp, X)


def test_a_model_that_holds_what_it_computed_is_copied_without_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.held: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.held = self.fc(x)
            return cast(Tensor, self.held)

    model = Holder()
    wanted = model(X)
    assert torch.equal(make(model, X)(X), wanted)
    assert model.held is wanted


def test_verbose_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    net = make(mlp_of(8), X, verbose=True)
    assert capsys.readouterr().out == f"{net.report()}\n"
    elastic(mlp_of(8), X)  # no one sits at a prompt here
    assert capsys.readouterr().out == ""


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_activate_using_and_sample(mlp: Elastic) -> None:
    assert mlp.active == mlp.space.largest()
    whole = run(mlp, X)
    assert mlp.activate({"width:body.0": 8}) == Config({"width:body.0": 8, "width:body.2": 12}) == mlp.active
    with mlp.using(HALF) as inside:
        assert inside is mlp
        assert mlp.active == Config(HALF)
        with pytest.raises(RuntimeError, match="inner"), mlp.using({"width:body.2": 4}):
            raise RuntimeError("inner")
        assert mlp.active == Config(HALF)
    assert mlp.active == Config({"width:body.0": 8, "width:body.2": 12})
    mlp.activate({})
    assert torch.equal(run(mlp, X), whole)
    draws = [[mlp.sample(generator) for _ in range(8)] for generator in (seeded(1, "draw"), seeded(1, "draw"))]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1
    assert all(mlp.space.validate(config) == config for config in draws[0])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"width:nonsense": 8}, ("'width:nonsense'", "width:body.0, width:body.2")),
        ({"width:body.0": 5}, ("'width:body.0'", "[4, 8, 12, 16]", "got 5")),
        ({"width:body.0": 17}, ("'width:body.0'", "got 17")),
    ],
)
def test_wrong_configs_are_refused_everywhere_and_change_nothing(
    mlp: Elastic, config: dict[str, int], words: tuple[str, ...]
) -> None:
    mlp.activate(HALF)
    for action in (mlp.activate, mlp.extract, mlp.cost, mlp.sources, lambda c: mlp.using(c).__enter__()):
        with pytest.raises(ValueError, match="knob") as caught:
            action(config)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)
    assert mlp.active == Config(HALF)


# -- running -----------------------------------------------------------------------------------------------------------


def test_forward_takes_the_original_s_arguments(mlp: Elastic) -> None:
    assert torch.equal(run(mlp, X), run(mlp, x=X))
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"x": X}), ((), {"y": X}), ((X,), {"y": X})):
        with pytest.raises(TypeError, match="MLP was traced with the inputs x; got ") as caught:
            mlp(*args, **cast(dict[str, Any], kwargs))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_other_batch_sizes(mlp: Elastic, resnet: Elastic, gpt: Elastic, rows: int) -> None:
    for net, x in ((mlp, floats(rows, 6)), (resnet.eval(), floats(rows, 3, 8, 8)), (gpt, IDS[:1].expand(rows, 12))):
        small = net.extract(net.space.smallest())
        with net.using(net.space.smallest()):
            out = run(net, x)
        assert len(out) == rows
        assert same(out, run(small, x))
        assert same(out[:1], run(small, x[:1]), 1e-5)


def test_an_example_of_one_row() -> None:
    torch.manual_seed(0)
    model = nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=1, heads=4).eval()
    net = make(model, IMAGES[:1])
    assert same(run(net, IMAGES), run(model, IMAGES), 1e-5)
    assert net.cost({}) == make(model, IMAGES).cost({})


class TwoInputs(nn.Module):
    """Adds what two inputs say; the second may be given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        hidden = (self.left(a) + self.right(b)).relu()
        return {"logits": self.head(hidden), "hidden": hidden.sum(1)}


@pytest.mark.parametrize("example", [(X, floats(4, 4)), {"a": X, "b": floats(4, 4)}, {"b": floats(4, 4), "a": X}])
def test_tuples_and_dicts(example: Any) -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    net = make(model, example)
    small = net.extract(net.space.smallest())
    inputs = example if isinstance(example, dict) else dict(zip("ab", example, strict=True))
    wanted = run(model, **inputs)
    for got in (run(net, **inputs), run(net, inputs["a"], b=inputs["b"]), run(net, inputs["a"], inputs["b"])):
        assert all(torch.equal(got[key], wanted[key]) for key in ("logits", "hidden"))
    with net.using(net.space.smallest()):
        assert same(run(net, **inputs)["logits"], run(small, **inputs)["logits"])
    with pytest.raises(TypeError, match="inputs a, b"):
        net(inputs["a"])


def test_integers_and_masks() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.fc(self.embed(ids)) * mask.unsqueeze(-1)
            return cast(Tensor, self.head(x.sum(1)))

    torch.manual_seed(0)
    model, example = Masked(), {"ids": IDS % 9, "mask": IDS > 4}
    net = make(model, example)
    assert torch.equal(run(net, **example), run(model, **example))
    small = net.extract(net.space.smallest())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    with net.using(net.space.smallest()):
        assert same(run(net, **example), run(small, **example))


# -- taking out --------------------------------------------------------------------------------------------------------


def test_what_is_taken_out_is_a_copy_with_its_own_modes(resnet: Elastic) -> None:
    resnet.eval()
    small = resnet.extract(resnet.space.smallest())
    assert not small.training
    assert not isinstance(small, Elastic)
    assert type(small).__name__ == "ResNet"
    before = copy.deepcopy(resnet.state_dict())
    small.train()
    assert not torch.equal(run(small, IMAGES), run(small.eval(), IMAGES))
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    assert resnet.train().extract({}).training


def test_extract_takes_anything_with_a_config(mlp: Elastic) -> None:
    @dataclass
    class Point:
        config: Config

    assert same(run(mlp.extract(Point(Config(HALF))), X), run(mlp.extract(HALF), X), 0.0)


def test_into_a_module_of_ones_own(mlp: Elastic) -> None:
    own = mlp_of(8, 6).train()
    filled = mlp.extract(HALF, into=own)
    assert filled is own
    assert own.training
    assert same(run(own.eval(), X), run(mlp.extract(HALF), X), 0.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mlp_of(8, 8), ("does not fit", "size mismatch", "head.weight", "sizes")),
        (mlp_of(8, 6, activation="tanh"), ("computes something else", "difference")),
        (mlp_of(8), ("does not fit",)),
        (nn.Linear(6, 3), ("computes something else",)),
        (nn.Linear(6, 5), ("(4, 5)", "(4, 3)")),
        (nn.Linear(9, 3), ("does not fit", "cannot be multiplied")),
    ],
)
def test_into_the_wrong_module(mlp: Elastic, wrong: nn.Module, words: tuple[str, ...]) -> None:
    wrong.train()
    with pytest.raises(PliantError) as caught:
        mlp.extract(HALF, into=wrong)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert wrong.training


def test_into_a_module_that_gives_nan(mlp: Elastic) -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] * float("nan")

    with pytest.raises(PliantError, match="difference nan"):
        mlp.extract(HALF, into=Nan())


def _naive_statistics(net: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Every BatchNorm's mean and unbiased variance, averaged over batches; each batch is normalised by its own."""
    seen: dict[str, list[Tensor]] = {}
    for path, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):

            def note(_: nn.Module, args: tuple[Tensor], path: str = path) -> None:
                rows = args[0].transpose(0, 1).flatten(1)
                seen.setdefault(f"{path}.running_mean", []).append(rows.mean(1))
                seen.setdefault(f"{path}.running_var", []).append(rows.var(1))

            module.register_forward_pre_hook(note)
    for batch in batches:
        run(net.train(), batch)
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


def test_calibration_is_a_plain_re_estimation(resnet: Elastic) -> None:
    config = {"width:conv1": 4, "width:stages.0.0.conv1": 4, "width:stages.1": 8, "width:stages.1.0.conv1": 8,
              "depth:stages.1.1": False}  # fmt: skip
    before = copy.deepcopy(resnet.state_dict())
    batches = [floats(9, 3, 8, 8), floats(5, 3, 8, 8) + 0.5]
    found = resnet.extract(config, calibrate=iter(batches))
    assert found.training
    narrow = resnet.extract(config, into=nets.resnet((3, 8, 8), 5, blocks=(1, 1), width=4))
    wanted = _naive_statistics(narrow, batches)
    state = found.state_dict()
    assert set(wanted) == {name for name in state if "running" in name}
    for name, value in wanted.items():
        assert same(state[name], value, 1e-5), name
        assert not torch.equal(state[name], before[name][: len(value)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())


def test_calibration_leaves_dropout_out_and_counts_shared_layers_once_a_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b, self.c = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.bn(self.a(x)).relu())
            return cast(Tensor, self.c(self.bn(self.b(x))))

    torch.manual_seed(0)
    model = Shared()
    net = make(model, X)
    found = net.extract({}, calibrate=[floats(16, 6)])
    model.drop.p = 0.0
    wanted = _naive_statistics(model, [floats(16, 6)])
    for name, value in wanted.items():
        assert same(found.state_dict()[name], value, 1e-5), name


def test_calibration_needs_batches_that_fit(resnet: Elastic, mlp: Elastic) -> None:
    with pytest.raises(PliantError, match=r"no batches .*at least one batch"):
        resnet.extract({}, calibrate=[])
    with pytest.raises(PliantError, match="holds"):
        resnet.extract({}, calibrate=[{"images": IMAGES}])
    assert same(run(mlp.extract({}, calibrate=[]), X), run(mlp, X), 0.0)  # nothing to estimate


def test_dict_batches_calibrate_by_name() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.bn = nn.Linear(6, 8), nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return cast(Tensor, self.head(self.bn(self.left(a) - 2 * self.right(b)).relu()))

    torch.manual_seed(0)
    model, a, b = Normed(), floats(8, 6), floats(9, 6)[1:]
    net = make(model, (a, b))
    wanted = (model.left(a) - 2 * model.right(b)).detach().mean(0)
    for batch in ((a, b), {"a": a, "b": b}, {"b": b, "a": a}):
        assert same(net.extract({}, calibrate=[batch]).state_dict()["bn.running_mean"], wanted)


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt"])
def test_costs_are_true_counts(name: str, request: pytest.FixtureRequest) -> None:
    net: Elastic = request.getfixturevalue(name)
    generator = seeded(0, "costs")
    for config in [net.space.smallest(), net.space.largest(), *(net.sample(generator) for _ in range(6))]:
        parameters = list(net.extract(config).parameters())
        cost = net.cost(config)
        assert cost.parameters == sum(p.numel() for p in parameters)
        assert cost.bytes == sum(p.numel() * p.element_size() for p in parameters)
    assert net.cost(net.space.smallest()).flops < net.cost({}).flops


def test_flops_of_an_mlp_by_hand(mlp: Elastic) -> None:
    assert mlp.cost({}).flops == 2 * (6 * 16 + 16 * 12 + 12 * 3)
    assert mlp.cost(HALF).flops == 2 * (6 * 8 + 8 * 6 + 6 * 3)


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt"])
def test_sources_say_where_every_tensor_comes_from(name: str, request: pytest.FixtureRequest) -> None:
    net: Elastic = request.getfixturevalue(name)
    generator = seeded(0, "sources")
    whole = net.state_dict()
    for config in [net.space.smallest(), *(net.sample(generator) for _ in range(4))]:
        taken, sources = net.extract(config).state_dict(), net.sources(config)
        assert set(sources) == set(taken)
        for inner, (outer, axes) in sources.items():
            tensor = whole[outer]
            assert len(axes) == tensor.dim()
            for axis, runs in enumerate(axes):
                if runs is not None:
                    parts = [tensor.narrow(axis, begin, end - begin) for begin, end in runs]
                    tensor = torch.cat(parts, dim=axis)
            assert torch.equal(tensor, taken[inner]), inner


# -- names and copies --------------------------------------------------------------------------------------------------


def test_a_deep_copy_is_its_own_network(resnet: Elastic) -> None:
    twin = copy.deepcopy(resnet)
    assert run(twin.eval(), IMAGES).equal(run(resnet.eval(), IMAGES))
    before = copy.deepcopy(resnet.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    run(twin.train(), IMAGES)
    twin.activate(twin.space.smallest())
    assert resnet.active == resnet.space.largest()
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    out = twin.eval().extract(twin.active)
    assert same(run(twin, IMAGES), run(out, IMAGES))
    twin.train()(IMAGES).sum().backward()
    assert {id(parameter) for parameter in twin.touched()} <= {id(parameter) for parameter in twin.parameters()}
    assert resnet.touched() == {}
    assert all(parameter.grad is None for parameter in resnet.parameters())


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_names_are_the_original_s(name: str, request: pytest.FixtureRequest) -> None:
    net: Elastic = request.getfixturevalue(name)
    model = mlp_of(16, 12) if name == "mlp" else nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=8)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in net.state_dict().items()} == shapes
    assert {key for key, _ in net.named_parameters()} == {key for key, _ in model.named_parameters()}
    x = X if name == "mlp" else IMAGES
    net.load_state_dict(model.state_dict())
    assert torch.equal(run(net.eval(), x), run(model.eval(), x))
    model.load_state_dict(net.state_dict())


class Awkward(nn.Module):
    """Has a second name for a weight, a layer that it never calls, a constant and a buffer that is not stored."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.again, self.never = self.second, nn.Linear(2, 2)
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()) * self.scale
        return cast(Tensor, self.head(self.again(x).relu() * torch.tensor([1.0, -1.0] * 4)))


@pytest.mark.parametrize("stored", [False, True])
def test_the_original_s_state_can_be_loaded_whatever_it_holds(stored: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Awkward()
    net = make(model, X)
    if stored:
        net.save(tmp_path / "net")
        net = Elastic.load(tmp_path / "net")
    trained = Awkward()
    trained.scale = model.scale
    net.load_state_dict(trained.state_dict())
    assert same(run(net, X), run(trained, X), 0.0)
    net.load_state_dict(net.state_dict())
    wrapped = nn.ModuleDict({"inner": net})
    wrapped.load_state_dict({f"inner.{key}": tensor for key, tensor in model.state_dict().items()})
    assert same(run(net, X), run(model, X), 0.0)
    lacking = {key: tensor for key, tensor in model.state_dict().items() if key != "head.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        net.load_state_dict(lacking)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nonsense"):
        net.load_state_dict({**model.state_dict(), "nonsense": X})


def test_tied_weights_stay_one_tensor(gpt: Elastic) -> None:
    model = nets.gpt((12,), 11, dim=16, depth=2, heads=4).eval()
    gpt.load_state_dict(model.state_dict())
    assert same(run(gpt, IDS), run(model, IDS), 1e-5)
    config = {"width:positions": 8, "heads:blocks.0.attn": 2, "heads:blocks.1.attn": 2,
              "width:blocks.0.mlp.fc1": 32, "width:blocks.1.mlp.fc1": 32}  # fmt: skip
    small = gpt.extract(config)
    wide = [tensor for tensor in small.parameters() if tensor.shape == (11, 8)]
    assert len(wide) == 1
    own: Any = gpt.extract(config, into=nets.gpt((12,), 11, dim=8, depth=2, heads=2).eval())
    assert own.head.weight is own.tokens.weight
    assert same(run(own, IDS), run(small, IDS), 1e-5)
    before = run(small, IDS)
    with torch.no_grad():
        wide[0].mul_(2.0)
    changed = run(small, IDS)
    assert not same(changed / 2, before, 1e-3)  # the embedding changed with the head
    separate = make(nets.gpt((12,), 11, dim=16, depth=1, heads=4, tied=False), IDS)
    assert {"tokens.weight", "head.weight"} <= set(separate.extract(separate.space.smallest()).state_dict())


def test_frozen_parameters_stay_frozen() -> None:
    model: Any = mlp_of(16, 12)
    model.body[0].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    net = make(model, X)
    wanted = {"body.0.weight", "head.bias"}
    for found in (net, net.extract(HALF), copy.deepcopy(net)):
        assert {name for name, p in found.named_parameters() if not p.requires_grad} == wanted
    net.train()(X).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == wanted


# -- what training has used --------------------------------------------------------------------------------------------


def test_touched_is_the_union_of_what_training_ran(mlp: Elastic) -> None:
    weight = mlp.get_parameter("body.2.weight")
    mlp.train()
    assert mlp.touched() == {}
    for config in ({"width:body.0": 4}, {"width:body.0": 8, "width:body.2": 6}):
        with mlp.using(config):
            mlp(X)
    assert mlp.touched()[weight] == (slice(0, 12), slice(0, 8))
    mlp.clear_touched()
    assert mlp.touched() == {}
    with mlp.using(HALF), torch.no_grad():
        mlp(X)
    mlp.eval()(X)
    assert mlp.touched() == {}  # neither without gradients nor in evaluation


def test_skipped_spans_are_touched_nowhere(resnet: Elastic) -> None:
    resnet.train()
    with resnet.using({"depth:stages.1.1": False}):
        resnet(IMAGES)
    touched = {name: resnet.touched()[p] for name, p in resnet.named_parameters()}
    assert touched["stages.1.1.conv1.weight"] == (slice(0, 0),) * 4
    assert touched["stages.1.1.bn2.bias"] == (slice(0, 0),)
    assert touched["conv1.weight"][0] == slice(0, 8)


# -- report ------------------------------------------------------------------------------------------------------------


def test_the_report_as_data(resnet: Elastic) -> None:
    data = resnet.report().to_dict()
    assert data["network"] == "ResNet"
    rows = {row["name"]: row for row in data["groups"]}
    assert set(rows) == {knob.name for knob in resnet.space if knob.kind == "width"}
    assert rows["width:stages.1"]["units"] == 16
    assert rows["width:stages.1"]["choices"] == (4, 8, 12, 16)
    assert "fc.weight[1]" in rows["width:stages.1"]["where"]
    assert all(0 < row["parameters_share"] <= 1 and 0 < row["flops_share"] <= 1 for row in rows.values())
    assert [row["name"] for row in data["depth"]] == ["depth:stages.0.0", "depth:stages.1.1"]
    net = nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=8)
    block = sum(p.numel() for name, p in net.named_parameters() if name.startswith("stages.1.1."))
    assert data["depth"][1]["parameters"] == block
    assert data["subnetworks"] == resnet.space.size
    assert data["whole"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert data["smallest"] == vars(resnet.cost(resnet.space.smallest()))
    assert data["rigid"] == ()
    assert 0.99 < data["coverage"] <= 1


def test_the_report_as_text_and_html(resnet: Elastic) -> None:
    report = resnet.report()
    text, html = str(report), resnet._repr_html_()
    assert text.startswith(f"ResNet: {report.headline()}\n")
    assert "5 widths, 2 depths" in report.headline() == resnet.extra_repr()
    for knob in resnet.space:
        assert knob.name in text
        assert knob.name in html
    assert "4/8/12/16" in text
    assert "4/8/12/16" in html
    assert html.count("<tr>") == 1 + len(resnet.space)


def test_the_report_names_what_is_rigid_and_escapes_it() -> None:
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.linalg.matrix_exp(self.a(x)[:, :, None] * self.a(x)[:, None, :] * 0.01)
            return cast(Tensor, self.b(y.sum(1))) if x.shape[1] < 9 else x

    report = make(Rigid(), X).report()
    assert report.groups == ()
    assert any("matrix_exp" in rigid.operator and "keeps the size" in rigid.reason for rigid in report.rigid)
    assert all("test_elastic.py" in rigid.line for rigid in report.rigid)
    assert "nothing bends" in str(report)
    assert "rigid: " in str(report)
    assert "<li><code>" in report._repr_html_()
    assert " < 9" not in report._repr_html_()
