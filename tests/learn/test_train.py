"""Training: what is learned, recorded, refused and left alone."""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pliant.core import PliantError, call
from pliant.data import Dataset, Split
from pliant.learn import Batch, Callback, LossFn, Plain, Recipe, Settings, State, evaluate, train
from pliant.learn.schedule import schedule


def mlp(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(32)] if norm else []
    return nn.Sequential(nn.Linear(64, 32), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    x, y = load_digits(return_X_y=True)
    return Dataset.of(((x / 16).astype(np.float32), y.astype(np.int64)))


@pytest.fixture
def small(digits: Dataset) -> Dataset:
    return Dataset("digits", digits.train.take(97), digits.val.take(20), digits.val, classes=digits.classes)


FAST = Settings(lr=5e-3, batch_size=32)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_mlp_learns_digits(digits: Any) -> None:
    net = mlp(norm=True)
    reads = digits.test_reads
    history = train(net, digits, epochs=6, settings=FAST)
    assert digits.test_reads == reads
    assert evaluate(net, digits.test) > 0.93
    assert history.val == pytest.approx(evaluate(net, digits.val))
    assert history.loss is not None
    assert history.loss < 0.3 * history.epochs[0].loss


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator(small: Dataset) -> None:
    nets = []
    for noise in (1, 2):
        net = mlp(dropout=0.5)
        torch.manual_seed(noise)
        expected = torch.randn(1)
        torch.manual_seed(noise)
        train(net, small, epochs=2, settings=FAST, seed=3)
        assert torch.equal(torch.randn(1), expected)
        nets.append(net)
    assert same(*nets)
    other = mlp(dropout=0.5)
    train(other, small, epochs=2, settings=FAST, seed=4)
    assert not same(other, nets[0])


def test_modes_and_gradients_are_left_as_they_were(small: Dataset) -> None:
    net = mlp().eval()
    net[0].train()
    train(net, small, epochs=1, settings=FAST)
    assert [module.training for module in net] == [True, False, False, False]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_metrics_file_and_history_agree(small: Dataset, tmp_path: Path) -> None:
    history = train(mlp(), small, epochs=2, run=tmp_path / "run", settings=replace(FAST, accumulate=2))
    # 97 samples in batches of 32: the last sample is dropped, 3 batches make 2 steps.
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written] == [1, 2, 2, 3, 4, 4]
    steps, epochs = [x for x in written if "lr" in x], [x for x in written if "metric" in x]
    assert [vars(record) for record in history.steps] == steps
    assert [vars(record) for record in history.epochs] == epochs
    assert epochs[0]["loss"] == pytest.approx((steps[0]["loss"] + steps[1]["loss"]) / 2)
    assert [line["metric"] for line in epochs] == ["accuracy", "accuracy"]
    for name in ("seconds", "cpu_seconds"):
        values = [line[name] for line in steps]
        assert values == sorted(values)
        assert getattr(history, name) == values[-1] > 0
    assert "2 epochs, 4 steps" in str(history)


def test_cpu_seconds_leave_validation_out(small: Dataset, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Slow(Recipe):
        def step(
            self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
        ) -> Tensor:
            return loss_fn(call(net, batch[0]), batch[1])

        def measured(self, net: nn.Module, inputs: Any) -> nn.Module:
            end = time.process_time() + 0.3
            while time.process_time() < end:
                pass
            return net

    history = train(mlp(), small, recipe=Slow(), epochs=1, settings=FAST)
    assert history.cpu_seconds < 0.25


def test_accumulated_batches_equal_one_large_batch(small: Dataset) -> None:
    data = Dataset("d", small.train.take(96), small.val, small.val, classes=small.classes)
    nets = [mlp(), mlp()]
    sgd = Settings(optimizer="sgd", lr=0.1, batch_size=32, accumulate=3)
    histories = [train(nets[0], data, epochs=2, settings=sgd)]
    histories.append(train(nets[1], data, epochs=2, settings=replace(sgd, batch_size=96, accumulate=1)))
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(a, b)
    assert histories[0].loss == pytest.approx(histories[1].loss, rel=1e-5)


def test_one_sgd_step_by_hand() -> None:
    data = Split(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    settings = Settings(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule="constant", warmup=0.0, batch_size=1)
    history = train(net, Dataset("d", data, data, data, task="regress"), epochs=1, settings=settings)
    assert history.steps[0].loss == pytest.approx(1.0)  # (2 - 1)^2
    assert net.weight.item() == pytest.approx(1.0 - 0.1 * 4.0)  # d/dw (2w - 1)^2 = 4 (2w - 1)
    assert history.val == pytest.approx((2 * 0.6 - 1) ** 2)
    settings = replace(settings, grad_clip=0.5)
    train(net, Dataset("d", data, data, data, task="regress"), epochs=1, settings=settings)
    assert net.weight.item() == pytest.approx(0.6 - 0.1 * 0.5)  # gradient 0.8, clipped


def test_schedules_by_hand() -> None:
    share = schedule("linear", steps=10, warmup=0.2)
    assert [share(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    share = schedule("cosine", steps=4, warmup=0.0)
    assert [share(step) for step in range(4)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )
    assert schedule("constant", steps=4, warmup=0.0)(3) == 1.0


def test_the_learning_rate_follows_the_schedule(small: Dataset) -> None:
    history = train(mlp(), small, epochs=2, settings=Settings(lr=0.01, batch_size=32, schedule="linear", warmup=0.0))
    assert [record.lr for record in history.steps] == pytest.approx([0.01 * (6 - step) / 6 for step in range(6)])


def test_callbacks_see_every_step_and_epoch(small: Dataset) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int, float | None]] = []

        def on_step(self, state: State) -> None:
            self.seen.append(("step", state.step, state.epoch, state.val))

        def on_epoch(self, state: State) -> None:
            self.seen.append(("epoch", state.step, state.epoch, state.val))

        def on_end(self, state: State) -> None:
            self.seen.append(("end", state.step, state.epoch, state.val))
            with pytest.raises(AttributeError):
                state.step = 0  # type: ignore[misc]

    watch = Watch()
    history = train(mlp(), small, epochs=2, settings=replace(FAST, batch_size=64, callbacks=(watch,)))
    first, last = (record.val for record in history.epochs)
    assert watch.seen == [
        ("step", 1, 0, None),
        ("step", 2, 0, None),
        ("epoch", 2, 0, first),
        ("step", 3, 1, None),
        ("step", 4, 1, None),
        ("epoch", 4, 1, last),
        ("end", 4, 1, last),
    ]


def test_a_last_batch_of_one_sample_does_not_break_batch_norm(small: Dataset) -> None:
    assert len(small.train) % 32 == 1
    assert len(train(mlp(norm=True), small, epochs=1, settings=FAST).steps) == 3


def test_a_network_may_bring_its_recipe(small: Dataset) -> None:
    @dataclass(frozen=True)
    class Counting(Recipe):
        calls: list[float]

        def step(
            self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
        ) -> Tensor:
            self.calls.append(float(torch.rand((), generator=generator)))
            return loss_fn(call(net, batch[0]), batch[1])

    class Net(nn.Sequential):
        def default_recipe(self) -> Recipe:
            return Counting(calls)

    calls: list[float] = []
    train(Net(*mlp()), small, epochs=1, settings=FAST)
    first, calls[:] = list(calls), []
    train(Net(*mlp()), small, epochs=1, settings=FAST)
    assert len(first) == 3
    assert calls == first
    train(Net(*mlp()), small, recipe=Plain(), epochs=1, settings=FAST)
    assert calls == first


@final
@dataclass(frozen=True)
class SmallBatches(Recipe):
    """Works best on batches of 16."""

    batch_size: ClassVar[int] = 16

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return loss_fn(call(net, batch[0]), batch[1])


@pytest.mark.parametrize(
    ("recipe", "given", "steps"),
    [(Plain(), None, 32), (SmallBatches(), None, 63), (SmallBatches(), 100, 10)],
)
def test_a_recipe_says_its_batch_size_and_settings_come_first(
    digits: Dataset, recipe: Recipe, given: int | None, steps: int
) -> None:
    """1,000 samples: batches of 128 become batches of 32, for an epoch is to have 16 steps at least."""
    data = Dataset("digits", digits.train.take(1000), digits.val.take(20), digits.val, classes=digits.classes)
    history = train(mlp(), data, recipe=recipe, epochs=1, settings=Settings(batch_size=given))
    assert len(history.steps) == steps


def test_dict_inputs_and_dict_outputs(small: Dataset) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, image: Tensor, scale: Tensor) -> Any:
            return {"loss": None, "other": scale, "logits": self.body(image * scale)}

    def split(part: Split) -> Split:
        return Split({"image": part.inputs, "scale": torch.ones(len(part), 1)}, part.targets)

    data = Dataset("d", split(small.train), split(small.val), split(small.val), classes=small.classes)
    net, twin = Net(), mlp()
    train(net, data, epochs=2, settings=FAST)
    train(twin, small, epochs=2, settings=FAST)
    assert same(net.body, twin)


def test_next_token_data(small: Dataset) -> None:
    tokens = torch.randint(7, (40, 7))
    part = Split(tokens, (tokens + 1) % 7)
    data = Dataset("tokens", part, part, part, task="next_token", classes=tuple("abcdefg"))
    net = nn.Sequential(nn.Embedding(7, 16), nn.Linear(16, 7))  # as many tokens as positions: [40, 7, 7]
    history = train(net, data, epochs=10, settings=Settings(lr=0.05, batch_size=8))
    assert history.epochs[-1].metric == "next_token_accuracy"
    assert history.val == 1.0


def test_bfloat16_trains_and_leaves_float32_parameters(small: Dataset) -> None:
    net = mlp()
    history = train(net, small, epochs=5, settings=replace(FAST, precision="bfloat16"))
    assert history.steps[-1].loss < history.steps[0].loss
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_frozen_parameters_stay(small: Dataset) -> None:
    net = mlp()
    weight = net.get_parameter("0.weight").requires_grad_(False)
    before = weight.clone()
    train(net, small, epochs=1, settings=FAST)
    assert torch.equal(weight, before)
    with pytest.raises(PliantError, match="no trainable parameters"):
        train(mlp().requires_grad_(False), small, epochs=1)


def test_a_loss_that_is_not_finite_names_step_and_batch(small: Dataset, tmp_path: Path) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = mlp(), 0

        def forward(self, x: Tensor) -> Any:
            self.calls += self.training
            return self.body(x) * (math.nan if self.calls == 5 else 1.0)

    net = Fails()
    settings = replace(FAST, checkpoint_every=1)
    with pytest.raises(PliantError, match=r"the loss is nan at step 5 \(epoch 1, batch 1\).*set grad_clip"):
        train(net, small, epochs=2, run=tmp_path / "run", settings=settings)
    assert (tmp_path / "run" / "checkpoints" / "00000004" / "state.json").exists()
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": math.nan}, "lr must be positive, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"warmup": 1.0}, r"warmup must be a share of the steps in \[0, 1\)"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd"),
        ({"schedule": "steps"}, "choose one of constant, cosine, linear"),
        ({"loss": "hinge"}, "choose one of cross_entropy"),
        ({"precision": "float16"}, "precision must be one of auto"),
        ({"accumulate": 0}, "accumulate"),
        ({"keep": 0}, "keep"),
        ({"grad_clip": -1.0}, "grad_clip"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**changes)


def test_bad_arguments_are_named(small: Dataset) -> None:
    empty = Split(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        train(mlp(), small, epochs=0)
    with pytest.raises(ValueError, match="no training samples"):
        train(mlp(), Dataset("none", empty, empty, empty), epochs=1)
    with pytest.raises(TypeError, match="recipe must be a Recipe"):
        train(mlp(), small, recipe=Plain, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed"):
        train(mlp(), small, epochs=1, seed=-1)


def test_a_data_set_without_validation_samples_has_no_metric(small: Dataset) -> None:
    empty = Split(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    history = train(mlp(), Dataset("d", small.train, empty, empty, classes=small.classes), epochs=1, settings=FAST)
    assert history.val is None
    assert history.loss is not None
