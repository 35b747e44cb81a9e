"""BatchNorm statistics of sub-networks: their own after every training, and a warning where nobody knows them."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import nets
from pliant.core import Config, seeded
from pliant.data import Dataset, load
from pliant.elastic import Elastic, elastic
from pliant.elastic import statistics as module
from pliant.elastic.recipes import Nested
from pliant.elastic.statistics import Statistics, Uncalibrated
from pliant.learn import Settings, evaluate, train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def after_training(digits: Dataset) -> Elastic:
    torch.manual_seed(0)
    shape = tuple(digits.train.inputs.shape[1:])
    net = elastic(nets.resnet(shape, 10, blocks=(1, 1), width=16), digits.example(2), verbose=False)
    train(net, digits, recipe=Nested(), epochs=8, settings=Settings(lr=1e-2, batch_size=64, progress=False))
    return net


@pytest.fixture
def trained(after_training: Elastic) -> Elastic:
    return copy.deepcopy(after_training).eval()


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nets.resnet((3, 8, 8), 3, blocks=(1, 1), width=8), torch.randn(16, 3, 8, 8)


def _family(steps: int = 3) -> tuple[Elastic, Tensor]:
    """A family trained in a loop of one's own."""
    model, x = _small()
    net = elastic(model, x[:2], verbose=False).train()
    optimizer, generator = torch.optim.SGD(net.parameters(), lr=0.1), seeded(0, "loop")
    for _ in range(steps):
        Nested().step(net, (x, torch.arange(16) % 3), F.cross_entropy, generator=generator).backward()  # type: ignore[no-untyped-call]
        Nested().update(net, optimizer)
        optimizer.zero_grad()
    return net.eval(), x


# -- after a training --------------------------------------------------------------------------------------------------


def test_after_a_training_no_sub_network_is_at_chance(trained: Elastic, digits: Dataset) -> None:
    for config in (trained.space.uniform(0.5), trained.space.smallest(), trained.space.largest()):
        with trained.using(config):
            inside = evaluate(trained, digits.val)
        alone = evaluate(trained.extract(config), digits.val)
        batches = [inputs for inputs, _ in digits.train.batches(128)]
        wanted = evaluate(trained.extract(config, calibrate=batches), digits.val)
        assert inside == alone
        assert abs(alone - wanted) < 0.03
        assert alone > (0.8 if config != trained.space.smallest() else 0.4)


def test_running_statistics_as_they_are_ruin_it(trained: Elastic, digits: Dataset) -> None:
    """The control: what the others guard against."""
    half = trained.space.uniform(0.5)
    good = evaluate(trained.extract(half), digits.val)
    trained.remember([])
    with pytest.warns(Uncalibrated, match=r"calibrate=batches"):
        bad = evaluate(trained.extract(half), digits.val)
    assert bad < good - 0.2


def test_a_sub_network_runs_as_it_is_taken_out(trained: Elastic, digits: Dataset) -> None:
    x = digits.val.inputs[:50]
    with torch.no_grad():
        for config in (trained.space.largest(), trained.space.uniform(0.5), trained.space.smallest()):
            with trained.using(config):
                assert torch.equal(trained(x), trained.extract(config)(x))
    trained.activate(trained.space.uniform(0.5))
    with torch.inference_mode():
        frozen = trained(x)
    assert torch.allclose(trained(x), frozen)
    assert trained(x).requires_grad


def test_a_training_that_was_complete_leaves_inputs_too(digits: Dataset, tmp_path: Path) -> None:
    small = Dataset("some", digits.train.take(64), digits.val.take(20), digits.val.take(20), "classify", digits.classes)
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        shape = tuple(digits.train.inputs.shape[1:])
        net = elastic(nets.resnet(shape, 10, blocks=(1,), width=8), digits.example(2), verbose=False)
        train(net, small, epochs=1, run=tmp_path / "run", settings=Settings(progress=False))
        with torch.no_grad(), net.eval().using(net.space.smallest()):
            outputs.append(net(small.val.inputs))
    assert torch.equal(outputs[0], outputs[1])


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_inputs_are_copies_and_no_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _family()
    batches = [torch.randn(300, 3, 8, 8) for _ in range(6)]
    net.remember(batches)
    kept = net._statistics._batches
    assert [len(batch) for batch in kept] == [300, 300, 300, 124]
    assert all(torch.equal(mine, given[: len(mine)]) for mine, given in zip(kept, batches, strict=False))
    batches[0].zero_()
    assert kept[0].any()
    assert net._statistics._batches[3].untyped_storage().nbytes() == 124 * 3 * 8 * 8 * 4
    monkeypatch.setattr(module, "BYTES", 10 * 3 * 8 * 8 * 4)
    net.remember([x])
    assert [len(batch) for batch in net._statistics._batches] == [10]
    net.remember([])
    assert net._statistics._batches == []


def test_inputs_are_read_on_demand_and_only_where_they_are_needed() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.randn(200, 3, 8, 8)

    net, _ = _family()
    net.remember(endless())
    assert sum(map(len, net._statistics._batches)) == 1024

    def never() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield torch.zeros(1)  # type: ignore[unreachable]

    plain = elastic(nets.mlp((6,), 3), torch.randn(2, 6), verbose=False).eval()
    plain.remember(never())
    assert plain.extract(plain.space.smallest())(torch.randn(2, 6)).shape == (2, 3)


def test_nothing_of_it_is_stored(tmp_path: Path) -> None:
    net, x = _family()
    names = list(net.state_dict())
    net.save(tmp_path / "before")
    net.remember([x])
    with torch.no_grad():
        net(x)
    assert list(net.state_dict()) == names
    assert sum(1 for _ in net.buffers()) == sum("running" in n or "batches" in n for n in names)
    net.save(tmp_path / "after")
    for name in ("graph.json", "tensors.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_nested_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 16)
            self.norm = nn.BatchNorm1d(16)
            self.head = nn.Linear(16, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            x: Tensor = self.head(self.norm(self.inner(a + b)).relu())
            return x

    net = elastic(Two(), (torch.randn(2, 6), torch.randn(2, 6)), verbose=False).eval()
    a, b = torch.randn(8, 6), torch.randn(8, 6)
    net.remember([{"a": a, "b": b}, {"b": a, "a": b}])
    small = net.extract(net.space.smallest())
    assert torch.allclose(small.get_buffer("norm.running_mean"), net.get_parameter("inner.weight")[:4] @ (a + b).mean(0)
                          + net.get_parameter("inner.bias")[:4], atol=1e-5)  # fmt: skip


# -- when it is estimated ----------------------------------------------------------------------------------------------


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Which sub-networks were estimated, in order."""
    found: list[Config] = []
    estimated = Statistics._estimated

    def counted(self: Statistics, net: Elastic) -> dict[int, Tensor]:
        found.append(net.active)
        return estimated(self, net)

    monkeypatch.setattr(Statistics, "_estimated", counted)
    return found


def test_once_for_each_sub_network_until_weights_change(estimates: list[Config]) -> None:
    net, x = _family()
    net.remember([x])
    small, large = net.space.smallest(), net.space.largest()

    def run() -> list[Tensor]:
        outputs = []
        for config in (small, large, small):
            with torch.no_grad(), net.using(config):
                outputs.append(net(x))
        return outputs

    first = run()
    run()
    assert estimates == [small, large]
    with torch.no_grad():
        net.get_parameter("conv1.weight").mul_(1.5)
    assert torch.allclose(run()[0], first[0], atol=1e-4)  # a scale that statistics of its own take out again
    assert estimates == [small, large] * 2
    net.train().eval()
    run()
    assert estimates == [small, large] * 3
    net.load_state_dict(net.state_dict())
    run()
    assert estimates == [small, large] * 4
    net.double()
    x = x.double()
    assert run()[0].dtype == torch.float64
    assert estimates == [small, large] * 5
    net.remember([x[:8]])
    assert not torch.equal(run()[0], first[0])
    assert estimates == [small, large] * 6


def test_training_runs_with_statistics_of_the_batch(estimates: list[Config]) -> None:
    net, x = _family()
    net.remember([x])
    net.train()
    before = net.get_buffer("bn1.running_mean").clone()
    with net.using(net.space.smallest()):
        net(x)
    assert not torch.equal(net.get_buffer("bn1.running_mean"), before)
    assert estimates == []


def test_a_copy_and_functional_calls_have_their_own(estimates: list[Config]) -> None:
    net, x = _family()
    net.remember([x])
    small = net.space.smallest()
    net.activate(small)
    with torch.no_grad():
        wanted = net(x)
        other = copy.deepcopy(net)
        other.get_parameter("fc.weight").mul_(2)
        assert not torch.equal(other(x), wanted)
        assert torch.equal(net(x), wanted)
    assert estimates == [small, small]
    given = {name: tensor.detach() for name, tensor in net.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Uncalibrated)
        torch.func.functional_call(net, given, (x,))
    assert estimates == [small, small]


# -- the warning -------------------------------------------------------------------------------------------------------


def test_a_warning_once_for_each_network() -> None:
    net, x = _family()
    small = net.space.smallest()
    with pytest.warns(Uncalibrated, match=r"sub-network of ResNet .*not its own.*calibrate=batches.*net.remember"):
        net.extract(small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.extract(small)
        with net.using(small):
            net(x)
    other, _ = _family()
    with pytest.warns(Uncalibrated) as told, other.using(small):
        other(x)
    assert told[0].filename == __file__
    assert len(told) == 1


def test_a_warning_for_the_whole_network_once_others_were_trained() -> None:
    net, x = _family()
    with pytest.warns(Uncalibrated):
        net(x)


def test_no_warning_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = _family(steps=0)[0]  # statistics have not moved yet
        fresh.extract(fresh.space.smallest())
        model, x = _small()
        with torch.no_grad():
            model.train()(x)
        net = elastic(model, x[:2], verbose=False)
        net.extract(net.space.largest())  # they are its own
        net.eval()(x)
        net, x = _family()
        net.extract(net.space.smallest(), calibrate=[x])
        net.remember([x])
        net.extract(net.space.smallest())
        plain = elastic(nets.mlp((6,), 3), torch.randn(2, 6), verbose=False)
        plain.extract(plain.space.smallest())
        model, x = _small()
        with torch.no_grad():
            model.train()(x)  # sizes are checked on a network whose statistics have moved
        elastic(model, x[:2], choices={"resolution:x": [4, 8]}, verbose=False)
