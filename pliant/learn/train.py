"""The training loop: a thin user of recipes that resumes by itself."""

import json
import math
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, map_tensors, seeded
from pliant.data import Dataset
from pliant.learn import metrics, schedule
from pliant.learn.callbacks import State
from pliant.learn.checkpoint import Subject, checkpoints, read_checkpoint, write_checkpoint
from pliant.learn.distributed import Team, join, own_device, team
from pliant.learn.evaluate import evaluate
from pliant.learn.history import EpochRecord, History, Log, StepRecord
from pliant.learn.losses import loss_function
from pliant.learn.modes import device_of, in_mode, own_randomness
from pliant.learn.progress import Bar, Interrupts
from pliant.learn.recipe import HasRecipe, Plain, Recipe, Remembers
from pliant.learn.run_folder import fingerprint, open_run
from pliant.learn.settings import Settings
from pliant.learn.speed import Ways, align, batches, compiled, laid_out, placed, plainly, settled

_MEASURED_BATCHES = 16  # batches of training inputs offered to `Recipe.measured`


def train(
    net: nn.Module,
    data: Any,
    *,
    recipe: Recipe | None = None,
    epochs: int = 10,
    run: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    device: str | torch.device | None = None,
    seed: int = 0,
) -> History:
    """Train a network in place.

    With a run folder, a training that was stopped in any way (Ctrl-C, kill -9, power) goes on when it is called again
    in the same way, and ends with the same bits (on a CPU with the same number of threads) as one that was not
    stopped. A complete training returns at once, with its weights in `net`. Only `data.train` is trained on, and
    `data.val` measured; `data.test` is never read.

    Several processes (`torchrun`, or a group of torch.distributed of the user's own) call it alike, with the same
    arguments and a run folder on a disk they share. Each takes its share of every batch, all with the same random
    sub-networks, and gradients are averaged, so that the result is that of one process but for rounding. What differs:
    dropout draws for every process by itself; BatchNorm normalises each share by its own statistics (the running ones
    are averaged), as in torch's DistributedDataParallel; a loss that is not a mean over samples, or that leaves targets
    out, is weighted by samples; a last batch of fewer than two samples a process is left out. Process 0 writes the run
    folder and draws the bar; callbacks are called everywhere. A group that `Settings(distributed=...)` makes stays.

    Args:
        net: the network. Its mode is given back as it was; it stays on `device`.
        data: a Dataset, or whatever `Dataset.of` takes: a name, a path, arrays, a torch Dataset or DataLoader.
        recipe: what a step does. None: `net.default_recipe()` where there is one, else `Plain()`.
        epochs: passes over the training split.
        run: the run folder; None keeps nothing on the disk.
        settings: optimizer, learning rate, batch size and so on.
        device: where to train; None is where the network is.
        seed: of the data's order, of dropout, and of the recipe's choices.

    Returns:
        Losses, learning rates, seconds and CPU seconds by step, and the validation metric by epoch.

    Raises:
        ValueError: epochs < 1, a negative seed, no training samples, or fewer in a batch than there are processes.
        TypeError: `recipe` is no Recipe.
        PliantError: a loss that is not finite; a run folder of something else, damaged or not writable; another
            process that failed or does not answer; a family that is to be compiled or sharded.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    dataset = Dataset.of(data, seed=seed)
    if len(dataset.train) == 0:
        raise ValueError(f"data {dataset.name!r} has no training samples")
    if recipe is None:
        recipe = net.default_recipe() if isinstance(net, HasRecipe) else Plain()
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, such as Plain(), got {recipe!r}")
    begun = fingerprint(net, dataset, recipe=recipe, epochs=epochs, settings=settings, seed=seed)
    there = own_device(device_of(net) if device is None else torch.device(device))
    group = Team(net, *join(settings.distributed, there), there)
    group.check_alike(begun, "the processes train different things", "call train with the same arguments in all")
    folder = None if run is None else group.in_order(lambda: open_run(run, begun))
    ways = group.in_order(lambda: settled(folder, settings.ways(net, there, processes=group.size)))
    if device is not None:
        net.to(there)
    start = seeded(seed, "torch").initial_seed()
    with own_randomness(device_of(net), start), in_mode(net, True), laid_out(net, ways.format):
        group = team(settings.distributed, net, recipe, group)
        with compiled(group.net, settings.compile):
            return _Training(group, dataset, recipe, settings, ways, epochs, folder, seed).go()


@dataclass
class _Position:
    """Where a training is; all of it travels in checkpoints. `batch` counts batches done in this epoch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    log_bytes: int = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Add what the block takes to the seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


class _Training:
    """One call of `train`."""

    def __init__(
        self,
        group: Team,
        data: Dataset,
        recipe: Recipe,
        settings: Settings,
        ways: Ways,
        epochs: int,
        run: Path | None,
        seed: int,
    ) -> None:
        self.group, self.data, self.recipe, self.settings, self.ways = group, data, recipe, settings, ways
        self.epochs, self.run, self.seed = epochs, run, seed
        self.net = net = group.net
        self.device = device_of(net)
        self.loss_fn = loss_function(data.loss if settings.loss is None else settings.loss, settings.output)
        self.measure = metrics.of_task(data.task, data.metric)
        self.optimizer = settings.build_optimizer(net)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        samples = len(data.train)
        self.rows = size = settings.rows(samples, recipe.batch_size)
        group.check_rows(min(size, samples))
        # BatchNorm cannot train on one sample, so a last batch of one is dropped (unless batches are of one anyway).
        self.drop_last = 0 < samples % size < group.least(size) and samples > size
        self.batches = samples // size if self.drop_last else math.ceil(samples / size)
        self.steps = epochs * math.ceil(self.batches / settings.accumulate)
        self.share = schedule.schedule(settings.schedule, steps=self.steps, warmup=settings.warmup)
        self.subject = Subject(*group.whole(self.optimizer), seeded(seed, "recipe"), self.device)
        self.at = _Position()
        self.saved = time.monotonic()
        self.saved_step = -1
        self.log: Log
        self.bar: Bar
        self.interrupts: Interrupts

    def go(self) -> History:
        """The whole training, or what is left of it."""
        self.group.start()
        found = checkpoints(self.run / "checkpoints") if self.run is not None else []
        if found:
            self.at = _Position(**read_checkpoint(found[-1], self.subject))
            align(self.optimizer)
            self.saved_step = self.at.step
        problem = "the processes found different checkpoints"
        self.group.check_alike(self.at.step, problem, "put the run folder on a disk that all of them share")
        if isinstance(self.net, Remembers):
            self.net.remember(self._some_inputs())
        self.log = self.group.in_order(self._log)
        if self.at.epoch >= self.epochs:
            self.log.close()
            self.group.finish()
            return self.log.history
        self.optimizer.zero_grad(set_to_none=True)
        self.interrupts = Interrupts(self.run is not None)
        try:
            shown = self.settings.progress if self.group.first else False
            with Bar(shown, steps=self.steps, epochs=self.epochs) as self.bar, self.interrupts:
                while self.at.epoch < self.epochs:
                    self._epoch()
                self._save()
            self.group.finish()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.log.close()
        last = self.log.history.epochs[-1]
        self._tell("on_end", self._state(last.epoch, last.loss, last.val))
        return self.log.history

    def _log(self) -> Log:
        if self.group.first or self.run is None:
            return Log(self.run, self.at.log_bytes)
        log = Log(None)
        if self.at.log_bytes:
            for line in (self.run / "metrics.jsonl").read_bytes()[: self.at.log_bytes].splitlines():
                log.history.add(json.loads(line))
        return log

    def _epoch(self) -> None:
        with closing(self._left()) as left:
            self._steps(left)
        self._end_epoch()

    def _left(self) -> Generator[tuple[Any, Tensor]]:
        """This process's shares of the batches that are left of this epoch."""
        split, size = self.data.train, self.rows
        order = torch.randperm(len(split), generator=seeded(self.seed, "order", self.at.epoch))
        parts = [order[i * size : (i + 1) * size] for i in range(self.at.batch, self.batches)]
        parts = [part[self.group.share(len(part))] for part in parts]
        return batches(split, parts, self.device, self.ways.format)

    def _steps(self, left: Iterator[tuple[Any, Tensor]]) -> None:
        while self.at.batch < self.batches:
            first, last = self.at.batch, min(self.at.batch + self.settings.accumulate, self.batches)
            rows = [min(self.rows, len(self.data.train) - i * self.rows) for i in range(first, last)]
            with self.at.counted():
                loss = self._step(left, rows)
            at = self.at
            self.log.step(StepRecord(at.step, at.epoch, loss, self._lr, at.seconds, at.cpu_seconds))
            self._tell("on_step", self._state(at.epoch, loss, None))
            if at.batch < self.batches:  # after the last batch there is one position, and it is the next epoch's
                self._save_when_due()

    def _step(self, left: Iterator[tuple[Any, Tensor]], rows: list[int]) -> float:
        """One optimizer step on batches of that many samples, counted over all processes. Returns their mean loss."""
        at = self.at
        share, recipe = self.share(at.step), self.recipe.at(at.step / self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * share
        total, samples = 0.0, sum(rows)
        self.group.begin_step(self.seed, at.step)
        for count, batch in zip(rows, left):
            with self.group.passes(last=at.batch % self.settings.accumulate == len(rows) - 1):
                total += self._passes(recipe, batch, count, samples)
            at.batch += 1
        self.group.end_step()
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.grad_clip)
        self.recipe.update(self.net, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        at.step += 1
        at.loss_sum += total
        at.loss_count += 1
        return total

    def _passes(self, recipe: Recipe, batch: tuple[Any, Tensor], count: int, samples: int) -> float:
        """Forward and backward for `count` of the step's samples. Returns what they add to its mean loss."""
        at = self.at
        with self.ways.autocast(self.device):
            loss = recipe.step(self.group.running, batch, self.loss_fn, generator=self.subject.generator)
        own = len(batch[1]) * self.group.size
        value = self.group.mean(float(loss.detach()) * (own / count))
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value} at step {at.step + 1} (epoch {at.epoch}, batch {at.batch})")
        parts = samples / own  # the number of batches in the step, where all batches and shares are alike
        (loss / parts if parts != 1 else loss).backward()  # type: ignore[no-untyped-call]
        return value / (samples / count)

    def _end_epoch(self) -> None:
        at = self.at
        mean = at.loss_sum / at.loss_count
        val = self._validate()
        record = EpochRecord(at.step, at.epoch, mean, self.measure.name, val, at.seconds, at.cpu_seconds)
        self.log.epoch(record)
        epoch = at.epoch
        at.epoch, at.batch, at.loss_sum, at.loss_count = epoch + 1, 0, 0.0, 0
        self._tell("on_epoch", self._state(epoch, mean, val))
        if at.epoch < self.epochs:
            self._save_when_due()

    def _validate(self) -> float | None:
        if len(self.data.val) == 0:
            return None
        # Measuring must not move the training's dropout, and compiled code is for the training's batches.
        with own_randomness(self.device), plainly(self.net):
            subject = self.recipe.measured(self.net, self._some_inputs())
            val = evaluate(
                subject,
                self.data.val,
                metric=self.measure,
                batch_size=max(self.rows, 512),
                output=self.settings.output,
                device=self.device,
            )
        if not math.isfinite(val):
            raise self._diverged(f"{self.measure.name} on the validation split is {val} after epoch {self.at.epoch}")
        return val

    def _some_inputs(self) -> Iterator[Any]:
        order = seeded(self.seed, "measured")
        batches = self.data.train.batches(self.rows, generator=order, drop_last=self.drop_last)
        for inputs, _ in islice(batches, _MEASURED_BATCHES):
            yield self._moved(inputs)

    def _moved(self, inputs: Any) -> Any:
        return map_tensors(lambda tensor: placed(tensor, self.device, self.ways.format), inputs)

    def _diverged(self, problem: str) -> PliantError:
        kept = "" if self.run is None else "; the last checkpoint stays"
        where = None if self.run is None else str(self.run)
        fix = f"lower lr (now {self.rates[0]:g}), set grad_clip, or look at this batch{kept}"
        return PliantError(problem, where=where, fix=fix)

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _state(self, epoch: int, loss: float, val: float | None) -> State:
        at = self.at
        where = {"step": at.step, "steps": self.steps, "epoch": epoch, "seconds": at.seconds}
        return State(
            net=self.net,
            loss=loss,
            lr=self._lr,
            cpu_seconds=at.cpu_seconds,
            metric=self.measure.name,
            val=val,
            run=self.run,
            **where,  # type: ignore[arg-type]
        )

    def _tell(self, event: str, state: State) -> None:
        if event != "on_end":
            self.bar.show(state)
        for callback in self.settings.callbacks:
            getattr(callback, event)(state)

    def _save_when_due(self) -> None:
        every = self.settings.checkpoint_every
        if isinstance(every, timedelta):
            due = time.monotonic() - self.saved >= every.total_seconds()
        else:
            due = self.at.step % every == 0
        due, asked = self.group.any(self.group.first and due, self.interrupts.asked)
        if due or asked:
            self._save()
        if asked:
            self._stop()

    def _save(self) -> None:
        step = self.at.step
        if self.run is None or step == self.saved_step:
            return
        self.at.log_bytes = self.log.flush()
        if self.group.first:
            folder, position = self.run / "checkpoints", asdict(self.at)
            write_checkpoint(folder, self.subject, step=step, position=position, keep=self.settings.keep)
        else:
            self.group.help_to_save(self.subject)
        self.saved, self.saved_step = time.monotonic(), step

    def _stop(self) -> None:
        text = f"stopped at step {self.at.step} of {self.steps}; the same call goes on from here ({self.run})"
        if self.group.first:
            print(text, file=sys.stderr)
        raise KeyboardInterrupt
