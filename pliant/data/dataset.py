"""Dataset: train, validation and test samples of one task."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pliant.core import Inputs, map_tensors, tensors_of

TASKS = ("classify", "regress", "next_token", "dense")


@dataclass(frozen=True)
class Metric:
    """Name and direction of the figure a task is judged by."""

    name: str
    higher_is_better: bool


_LOSSES = {"classify": "cross_entropy", "regress": "mse", "next_token": "next_token", "dense": "cross_entropy"}
_METRICS = {
    "classify": Metric("accuracy", True),
    "regress": Metric("mse", False),
    "next_token": Metric("next_token_accuracy", True),
    "dense": Metric("accuracy", True),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Samples that are used together; axis 0 of every tensor counts samples.

    Args:
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments), already preprocessed.
        targets: int64 labels [n, ...] or float32 values [n, k] or [n, C, H, W].

    Raises:
        ValueError: no tensors, or tensors of different lengths.
    """

    inputs: Any  # `Inputs`; a union would make every use of the usual tensor a cast
    targets: Tensor

    def __post_init__(self) -> None:
        lengths = {len(tensor) for tensor in [*tensors_of(self.inputs), self.targets]}
        if len(lengths) != 1 or not tensors_of(self.inputs):
            raise ValueError(f"inputs and targets must have the same number of samples, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        shapes = [tuple(tensor.shape) for tensor in tensors_of(self.inputs)]
        return f"Split({len(self)} samples, inputs {shapes}, targets {tuple(self.targets.shape)})"

    def select(self, index: Tensor | slice) -> "Split":
        """The samples at `index` (int64 [m] or a slice), in that order."""
        return Split(map_tensors(lambda tensor: tensor[index], self.inputs), self.targets[index])

    def take(self, n: int) -> "Split":
        """The first `n` samples, or all where there are fewer.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self.select(slice(0, n))

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Any, Tensor]]:
        """(inputs, targets) of `batch_size` samples at a time.

        Args:
            batch_size: samples per batch.
            generator: shuffles; without one the order is kept.
            drop_last: whether a last, smaller batch is left out.

        Raises:
            ValueError: batch_size < 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._batches(batch_size, generator, drop_last)

    def _batches(
        self, batch_size: int, generator: torch.Generator | None, drop_last: bool
    ) -> Iterator[tuple[Any, Tensor]]:
        order = None if generator is None else torch.randperm(len(self), generator=generator)
        whole = len(self) - len(self) % batch_size
        for start in range(0, whole if drop_last else len(self), batch_size):
            rows = slice(start, start + batch_size)
            part = self.select(rows if order is None else order[rows])
            yield part.inputs, part.targets


class _Counted:
    """The `test` field: counts how often it is read, so that a test can say that search and training never do."""

    def __get__(self, dataset: "Dataset | None", owner: type) -> Split:
        if dataset is None:
            raise AttributeError("test")  # tells dataclass that the field has no default
        dataset.__dict__["test_reads"] += 1
        split: Split = dataset.__dict__["_test"]
        return split

    def __set__(self, dataset: "Dataset", split: Split) -> None:
        dataset.__dict__.update(_test=split, test_reads=0)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples of one task, split and preprocessed.

    Train fits weights and BatchNorm statistics; val chooses; test is read once, at the end. Reading `test` adds one to
    `test_reads`.

    Args:
        name: what it is called in run folders.
        train, val, test: the splits.
        task: classify, regress, next_token or dense (for every pixel a class, or values: float targets).
        classes: class names (classify, dense), vocabulary (next_token), or empty.
        preprocessing: what was done to the raw samples (see `pliant.data.preprocessing`).
        notes: what the reader should know, such as which splits were cut here.

    Raises:
        ValueError: an unknown task.
    """

    name: str
    train: Split
    val: Split
    test: _Counted = _Counted()
    task: str = "classify"
    classes: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")

    @property
    def loss(self) -> str:
        """Name of the default loss: cross_entropy, mse or next_token."""
        return _LOSSES["regress" if self._valued else self.task]

    @property
    def metric(self) -> Metric:
        """The figure the task is judged by, and its direction."""
        return _METRICS["regress" if self._valued else self.task]

    @property
    def _valued(self) -> bool:
        """Whether every pixel has values, not a class."""
        return self.task == "dense" and self.train.targets.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample; of the first tensor where there are several."""
        return tuple(tensors_of(self.train.inputs)[0].shape[1:])

    @property
    def outputs(self) -> int:
        """Outputs a network needs: the number of classes or tokens, or of regressed values (dense: of one pixel)."""
        if self._valued:
            return self.train.targets.shape[1]
        return len(self.classes) if self.task != "regress" else math.prod(self.train.targets.shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        """Samples per split, without reading the test split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.__dict__["_test"])}

    def example(self, n: int = 2) -> Inputs:
        """The first `n` training inputs, for tracing. Raises `ValueError` for n < 1."""
        inputs: Inputs = self.train.take(n).inputs
        return inputs

    @classmethod
    def of(cls, source: Any, *, seed: int = 0, val_share: float = 0.1) -> "Dataset":
        """A Dataset from whatever holds samples.

        Args:
            source: a Dataset (returned as it is), a name or path (`pliant.data.load`), (x_train, y_train) or (x_train,
                y_train, x_test, y_test) arrays, a dict with keys x_train, y_train and optionally x_val, y_val, x_test,
                y_test, a torch Dataset or DataLoader of (input, target), or a pair (train, test) of these.
            seed: of the cut of splits that are not given.
            val_share: share of the samples that each split that is not given takes from train.

        Float arrays are taken as they are, uint8 images are normalised. Integer targets mean classify (dense with more
        than one axis; next_token where inputs are integers of the same shape), strings are mapped to classes, float
        targets mean regress and become [n, k], or dense where they are images [n, C, H, W] as large as the inputs.
        `notes` says which splits were cut.

        Raises:
            TypeError: none of the sources above.
            ValueError: val_share not in (0, 1), or an unknown name.
            PliantError: bad data.
        """
        from pliant.data.build import dataset_of  # build makes Datasets: a cycle at import time

        return dataset_of(source, seed=seed, share=val_share)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{count} {split}" for split, count in self.sizes.items())
        what = f"{len(self.classes)} classes" if self.classes else f"{self.outputs} values"
        return f"Dataset({self.name}: {self.task}, {what}, {sizes}, shape {self.shape})"
