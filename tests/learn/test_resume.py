"""Stopped in any way and started again, a training ends with the bits of one that was not stopped."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.data import Dataset, Split
from pliant.learn import Batch, Callback, History, LossFn, Plain, Recipe, Settings, State, train
from tests.learn.kill_me import EPOCHS, STEPS, DieAt, Tied, data, run

ROOT = Path(__file__).parents[2]

Undisturbed = tuple[Tied, History, Path]


def killed(folder: Path, when: str, count: int) -> None:
    """Run kill_me.py as it is told, and see that it was killed."""
    command = [sys.executable, "-m", "tests.learn.kill_me", str(folder), when, str(count)]
    # As many threads as here: other numbers of threads sum in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in records]


def assert_same(net: nn.Module, other: nn.Module) -> None:
    for (name, value), there in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, there), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    net, history = run(folder)
    assert len(history.steps) == STEPS
    return net, history, folder


def test_killed_at_random_steps_and_while_writing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    draw = random.Random(os.urandom(8))
    first = draw.randrange(5, 20)
    killed(folder, "step", first)
    # Two files and then the folder are renamed for each checkpoint.
    rename = draw.randrange(1, 7)
    killed(folder, "replace", rename)
    killed(folder, "step", draw.randrange(29, STEPS + 1))
    net, history = run(folder)
    expected, whole, there = undisturbed
    assert_same(net, expected)
    assert without_clock(lines(folder)) == without_clock(lines(there)), (first, rename)
    assert len(history.steps) == STEPS
    assert len(history.epochs) == EPOCHS
    assert history.val == whole.val
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000036", "00000039"]


class Stop(Callback):
    """Raises at one step; the training goes on from the last checkpoint."""

    def __init__(self, step: int, error: type[Exception] = ZeroDivisionError) -> None:
        self.step, self.error = step, error

    def on_step(self, state: State) -> None:
        if state.step == self.step:
            raise self.error


OPTIMIZERS: dict[str, Any] = {
    "sgd": "sgd",
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_are_brought_back(name: str, tmp_path: Path) -> None:
    changes = {"optimizer": OPTIMIZERS[name]}
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", Stop(23), **changes)
    net, _ = run(tmp_path / "run", **changes)
    expected, _ = run(None, **changes)
    assert_same(net, expected)


@pytest.mark.parametrize("step", [1, 12, 13, 14, 26, 38, 39])
def test_stopped_around_the_ends_of_epochs(undisturbed: Undisturbed, tmp_path: Path, step: int) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", Stop(step), checkpoint_every=1)
    net, history = run(tmp_path / "run", checkpoint_every=1)
    assert_same(net, undisturbed[0])
    assert [vars(record)["step"] for record in history.epochs] == [13, 26, 39]
    assert without_clock(lines(tmp_path / "run")) == without_clock(lines(undisturbed[2]))


def test_accumulated_steps_resume(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", Stop(9), accumulate=3)
    net, _ = run(tmp_path / "run", accumulate=3)
    assert_same(net, run(None, accumulate=3)[0])


def test_the_generator_of_the_recipe_goes_on(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Noisy(Recipe):
        def step(
            self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
        ) -> Tensor:
            noise = 1 + 0.1 * torch.randn(batch[0].shape, generator=generator)
            return loss_fn(net(batch[0] * noise), batch[1])

    def noisy(folder: Path | None, *callbacks: Callback) -> nn.Module:
        net, settings = Tied(), Settings(batch_size=8, checkpoint_every=4, callbacks=callbacks)
        train(net, data(), recipe=Noisy(), epochs=2, run=folder, settings=settings)
        return net

    with pytest.raises(ZeroDivisionError):
        noisy(tmp_path / "run", Stop(11))
    assert_same(noisy(tmp_path / "run"), noisy(None))


def test_a_complete_training_returns_at_once(undisturbed: Undisturbed) -> None:
    net, history, folder = undisturbed
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again, same = run(folder, DieAt(1))
    assert_same(again, net)
    assert same == history
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_tied_weights_are_saved_once_and_stay_tied(undisturbed: Undisturbed) -> None:
    _, _, folder = undisturbed
    state = json.loads((folder / "checkpoints" / "00000039" / "state.json").read_text())
    assert state["aliases"] == {"net.second.weight": "net.first.weight"}
    net, _ = run(folder)
    assert net.second.weight is net.first.weight


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Press(Callback):
        def on_step(self, state: State) -> None:
            if state.step == 15:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Press(), checkpoint_every=1000)
    assert "stopped at step 15 of 39; the same call goes on" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "00000015").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    net, _ = run(tmp_path / "run", checkpoint_every=1000)
    assert_same(net, undisturbed[0])


def test_training_in_another_thread_leaves_signals_alone(undisturbed: Undisturbed, tmp_path: Path) -> None:
    nets = []
    thread = threading.Thread(target=lambda: nets.append(run(tmp_path / "run")[0]))
    thread.start()
    thread.join()
    assert_same(nets[0], undisturbed[0])


def test_other_callbacks_and_bars_are_the_same_run(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    _, history = run(undisturbed[2], Stop(99), progress=True, keep=5, checkpoint_every=9)
    assert len(history.steps) == STEPS


def test_the_bar_is_drawn_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(None, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 3/3" in err
    assert "accuracy" in err


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    train(Tied(), data(), epochs=1, run=folder, settings=Settings(batch_size=64))
    return folder


@dataclass(frozen=True)
class Other(Recipe):
    share: float = 0.5

    def step(
        self, net: nn.Module, batch: Batch, loss_fn: LossFn, *, generator: torch.Generator | None = None
    ) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"net": nn.Linear(8, 3)}, r"another parameters \(.*weight"),
        ({"data": Dataset("blobs2", data().train, data().val, data().val)}, r"data \(name: blobs there, blobs2 here\)"),
        ({"data": Dataset("blobs", data().train.take(90), data().val, data().val)}, r"train: 101 there, 90 here"),
        ({"seed": 1}, r"another seed \(0 there, 1 here\)"),
        ({"epochs": 2}, r"another epochs \(1 there, 2 here\)"),
        ({"recipe": Other()}, r"recipe \(Plain\(\) there, Other\(share=0.5\) here\)"),
        ({"settings": Settings(batch_size=64, lr=0.1)}, r"settings \(lr: 0.001 there, 0.1 here\)"),
    ],
)
def test_a_run_folder_of_something_else_is_refused(begun: Path, changes: dict[str, Any], text: str) -> None:
    arguments: dict[str, Any] = {"net": Tied(), "data": data(), "recipe": Plain(), "epochs": 1, "seed": 0}
    arguments = {**arguments, "settings": Settings(batch_size=64), **changes}
    before = (begun / "config.json").read_bytes()
    with pytest.raises(PliantError, match=text) as caught:
        train(arguments.pop("net"), arguments.pop("data"), run=begun, **arguments)
    assert "choose another run folder, or delete this one" in str(caught.value)
    assert (begun / "config.json").read_bytes() == before


def test_config_json_keeps_what_others_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"model": "mlp", "data": "a.npz"}')
    train(Tied(), data(), epochs=1, run=folder, settings=Settings(batch_size=64))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["data"], config["seed"], config["recipe"]) == ("mlp", "a.npz", 0, "Plain()")
    assert config["train"]["data"] == {"name": "blobs", "task": "classify", "train": 101, "val": 19}


def test_damage_is_named(begun: Path) -> None:
    newest = sorted((begun / "checkpoints").iterdir())[-1]
    tensors = newest / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:100])
    with pytest.raises(PliantError, match=r"cannot be read.*delete this folder"):
        train(Tied(), data(), epochs=1, run=begun, settings=Settings(batch_size=64))
    tensors.write_bytes(whole)
    (begun / "metrics.jsonl").write_text("")
    with pytest.raises(PliantError, match=r"metrics.jsonl: 0 bytes, the checkpoint counts"):
        train(Tied(), data(), epochs=1, run=begun, settings=Settings(batch_size=64))
    shutil.rmtree(begun / "checkpoints")
    train(Tied(), data(), epochs=1, run=begun, settings=Settings(batch_size=64))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PliantError, match="cannot write"):
        run(tmp_path / "file" / "run")


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, folder = os.fsync, tmp_path / "run"

    def full(descriptor: int) -> None:
        if (folder / "checkpoints" / "00000008").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PliantError, match=r"No space left on device.*free some space"):
        run(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000004", "00000008"]
    assert_same(run(folder)[0], undisturbed[0])


def test_state_that_no_checkpoint_can_hold_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return object()

        def set_extra_state(self, state: object) -> None:
            pass

    part = Split(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(PliantError, match=r"net._extra_state is a object"):
        train(Odd(4, 2), Dataset("d", part, part, part), epochs=1, run=tmp_path / "run")
