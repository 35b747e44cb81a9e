"""Layout, precision, compiled code, batches made ahead, and accumulation: what they change, and what they must not."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant import nets
from pliant.core import PliantError
from pliant.core._torch_private import compiled_call
from pliant.data import Dataset, Split
from pliant.elastic.recipes.sandwich import Sandwich
from pliant.learn import Callback, Settings, State, train
from pliant.learn.speed import ahead, batches, convolves, placed, settled, ways

CPU = torch.device("cpu")


def images(count: int = 40, classes: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, 8, 8, generator=generator)
    y = x.mean((2, 3)).argmax(1) % classes
    val = Split(x[:10], y[:10])
    return Dataset("images", Split(x, y), val, val, classes=("a", "b", "c"))


def small(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    middle = [nn.BatchNorm2d(6)] if norm else []
    body = [nn.Conv2d(2, 6, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


SGD = Settings(optimizer="sgd", lr=0.05, batch_size=8)


class Layouts(Callback):
    """What a network looks like while it is trained."""

    def __init__(self) -> None:
        self.channels_last: set[bool] = set()

    def on_step(self, state: State) -> None:
        weight = state.net.get_parameter("3.weight")
        self.channels_last.add(weight.is_contiguous(memory_format=torch.channels_last))


class Watched(nn.Module):
    """Whether its inputs come channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = small(), set[bool]()

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return self.body(x)


@pytest.mark.parametrize(("layout", "expected"), [("auto", True), ("channels_last", True), ("contiguous", False)])
def test_weights_and_inputs_get_the_layout_and_the_network_gets_its_own_back(layout: str, expected: bool) -> None:
    net, watch = small(), Layouts()
    strides = [parameter.stride() for parameter in net.parameters()]
    identities = [id(parameter) for parameter in net.parameters()]
    train(net, images(), epochs=1, settings=replace(SGD, layout=layout, callbacks=(watch,)))
    assert watch.channels_last == {expected}
    assert [parameter.stride() for parameter in net.parameters()] == strides
    assert [id(parameter) for parameter in net.parameters()] == identities
    inputs = Watched()
    train(inputs, images(), epochs=1, settings=replace(SGD, layout=layout))
    assert inputs.seen == {expected}


def test_a_network_that_is_channels_last_stays_so() -> None:
    net = small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(net, images(), epochs=1, settings=replace(SGD, layout="contiguous"))
    assert net.get_parameter("3.weight").is_contiguous(memory_format=torch.channels_last)


def test_the_layout_moves_only_the_last_digits() -> None:
    found = []
    for layout in ("contiguous", "channels_last"):
        net = small()
        train(net, images(), epochs=2, settings=replace(SGD, layout=layout))
        found.append(net)
    for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nets.resnet((1, 28, 28), 10), True),
        (nets.dwsep((1, 28, 28), 10), True),
        (nets.vit((1, 28, 28), 10), False),
        (nets.mlp((1, 28, 28), 10), False),
        (nets.gpt((16,), 11), False),
    ],
)
def test_the_rule_for_the_layout(net: nn.Module, expected: bool) -> None:
    assert convolves(net) == expected
    chosen = ways(net, CPU, precision="auto", layout="auto")
    assert chosen.layout == ("channels_last" if expected else "as it is")
    assert chosen.precision == "float32"
    assert ways(net, torch.device("cuda"), precision="auto", layout="auto").precision == "bfloat16"


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: State) -> None:
        if state.step == self.step:
            raise RuntimeError("stop")


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"layout": "contiguous"}, {"accumulate": 2}])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = Settings(batch_size=8, lr=0.01, checkpoint_every=1, **changes)
    whole, parts = small(), small()
    train(whole, images(), epochs=3, settings=settings)
    with pytest.raises(RuntimeError, match="stop"):
        train(parts, images(), epochs=3, run=tmp_path / "run", settings=replace(settings, callbacks=(Stop(5),)))
    again = small()
    train(again, images(), epochs=3, run=tmp_path / "run", settings=settings)
    assert same(whole, again)


def test_a_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    net = small()
    train(net, images(), epochs=1, run=tmp_path / "run", settings=SGD)
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    assert config["computed"] == {"precision": "float32", "layout": "channels_last", "processes": 1}
    config["computed"]["precision"] = "bfloat16"  # as if begun by another rule, or on another machine
    path.write_text(json.dumps(config))
    chosen = SGD.ways(net, CPU)
    assert settled(tmp_path / "run", chosen) == replace(chosen, precision="bfloat16")
    with pytest.raises(PliantError, match="begun by 1 processes, now there are 2"):
        settled(tmp_path / "run", replace(chosen, processes=2))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layout": "nhwc"}, "layout must be one of auto, contiguous, channels_last, got 'nhwc'"),
        ({"distributed": "fsdp"}, "distributed must be one of auto, off, ddp, fsdp2, got 'fsdp'"),
        ({"distributed": "fsdp2", "layout": "channels_last"}, "layout must be 'auto' or 'contiguous'"),
        ({"distributed": "fsdp2", "compile": True}, "compile must be False with distributed='fsdp2'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**changes)


# -- compiled code ---------------------------------------------------------------------------------------------------


def test_a_family_is_not_compiled() -> None:
    family = pliant.elastic(small(), torch.zeros(2, 2, 8, 8), verbose=False)
    with pytest.raises(PliantError, match=r"a family cannot be compiled.*compile=False"):
        train(family, images(), epochs=1, settings=replace(SGD, compile=True))


class Compiled(Callback):
    def on_step(self, state: State) -> None:
        assert compiled_call(state.net) is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_compiled_steps_compute_the_same_and_nothing_stays_compiled(tmp_path: Path) -> None:
    data, settings = images(20), replace(SGD, compile=True, checkpoint_every=1)
    plain, whole, again = (nn.Sequential(nn.Flatten(), *mlp()) for _ in range(3))
    train(plain, data, epochs=2, settings=SGD)
    train(whole, data, epochs=2, settings=replace(settings, callbacks=(Compiled(),)))
    for a, b in zip(plain.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert compiled_call(whole) is None
    with pytest.raises(RuntimeError, match="stop"):
        train(again, data, epochs=2, run=tmp_path / "run", settings=replace(settings, callbacks=(Stop(2),)))
    train(again, data, epochs=2, run=tmp_path / "run", settings=settings)
    assert same(whole, again)


def mlp() -> list[nn.Module]:
    torch.manual_seed(2)
    return [nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)]


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_made_ahead_are_the_same_in_the_same_order() -> None:
    data = images()
    parts = list(torch.randperm(40).split(8))  # type: ignore[no-untyped-call]
    plain = list(batches(data.train, parts, CPU, torch.channels_last))
    early = list(ahead(iter(plain)))
    assert len(plain) == len(early) == 5
    for part, (x, y), (x2, y2) in zip(parts, plain, early, strict=True):
        assert torch.equal(x, data.train.inputs[part])
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, data.train.targets[part])
        assert x2 is x
        assert y2 is y


def test_what_is_made_ahead_stays_a_few_items_ahead_and_ends_with_its_reader() -> None:
    made = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    reader = ahead(numbers(), waiting=2)
    assert next(reader) == 0
    time.sleep(0.3)
    assert 1 <= len(made) <= 4
    reader.close()
    count = len(made)
    time.sleep(0.2)
    assert len(made) == count


def test_errors_of_what_is_made_ahead_reach_the_reader() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise PliantError("broken sample")

    reader = ahead(fails())
    assert next(reader) == 1
    with pytest.raises(PliantError, match="broken sample"):
        next(reader)


def test_only_images_are_laid_out() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert placed(tokens, CPU, torch.channels_last) is tokens


# -- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [48, 43])
def test_accumulated_batches_are_one_large_batch_of_a_family(samples: int) -> None:
    """Also where the last batch is smaller: samples weigh alike, not batches."""
    nets_, losses = [], []
    for size, accumulate in ((24, 1), (8, 3)):
        net = pliant.elastic(small(norm=False), torch.zeros(2, 2, 8, 8), verbose=False)
        settings = replace(SGD, batch_size=size, accumulate=accumulate, grad_clip=1.0, layout="contiguous")
        history = train(net, images(samples), recipe=Sandwich(random=0), epochs=2, settings=settings)
        nets_.append(net)
        losses.append([record.loss for record in history.steps])
    for a, b in zip(nets_[0].parameters(), nets_[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accumulated_batches_are_one_large_batch_with_a_smaller_last_one() -> None:
    found = []
    for size, accumulate in ((24, 1), (8, 3)):
        net = small(norm=False)
        train(net, images(38), epochs=3, settings=replace(SGD, batch_size=size, accumulate=accumulate))
        found.append(net)
    for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
