"""Raw arrays to a Dataset: check, encode labels, cut missing splits, preprocess."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from pliant.core import PliantError, map_tensors, seeded, tensors_of
from pliant.data import checks
from pliant.data.dataset import Dataset, Split
from pliant.data.preprocessing import Preprocessing, apply, combined, fit, image_layout

Parts = dict[str, Any]
"""Split name ("train", "val", "test") -> raw inputs or raw targets."""


@dataclass(frozen=True)
class Cut:
    """How missing splits are cut from train.

    Args:
        seed: of the draw.
        share: of the samples, for each missing split.
        limit: most samples per split, drawn by seed; None for all.

    Raises:
        ValueError: share not in (0, 0.5), limit < 1, or a negative seed.
    """

    seed: int = 0
    share: float = 0.1
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5:
            raise ValueError(f"val_share must be in (0, 0.5), got {self.share!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit!r}")
        seeded(self.seed)


@dataclass(frozen=True)
class Labels:
    """Checked targets of every split, with what they mean."""

    parts: dict[str, Tensor]
    task: str
    classes: tuple[str, ...]


def build(
    name: str,
    x: Parts,
    y: Parts,
    cut: Cut,
    *,
    classes: Sequence[str] | None = None,
    normalise: bool = False,
    scale: float = 1.0,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A Dataset from raw samples.

    Args:
        name: of the data set.
        x: split -> raw inputs; "train" is needed.
        y: split -> raw targets.
        cut: how missing splits are cut.
        classes: class names where they are known.
        normalise: whether float inputs are normalised too.
        scale: divides float inputs first.
        notes: what to tell the reader.

    Raises:
        PliantError: bad data.
    """
    inputs = {split: _check_inputs(value, f"{name}: x_{split}") for split, value in x.items()}
    labels = read_labels({f"{name}: y_{split}": y[split] for split in inputs}, inputs["train"], classes)
    targets = dict(zip(inputs, labels.parts.values(), strict=True))
    for split in inputs:
        checks.check_lengths(len(tensors_of(inputs[split])[0]), len(targets[split]), f"{name}: {split}")
    _same_shape(name, inputs)
    splits = {split: Split(inputs[split], targets[split]) for split in inputs}
    splits, cuts = cut_splits(splits, cut, name)
    infos = [fit(tensor, name, normalise=normalise, scale=scale) for tensor in tensors_of(splits["train"].inputs)]
    train, val, test = (_preprocessed(splits[split], infos) for split in ("train", "val", "test"))
    return Dataset(name, train, val, test, labels.task, labels.classes, combined(infos), notes + cuts)


def _structure(fn: Callable[[Any, str], Tensor], value: Any, where: str) -> Any:
    """`fn` on a single input or on every member of a tuple or dict of inputs."""
    if isinstance(value, dict):
        return {key: fn(member, f"{where}[{key!r}]") for key, member in value.items()}
    if isinstance(value, tuple):
        return tuple(fn(member, f"{where}[{index}]") for index, member in enumerate(value))
    return fn(value, where)


def _check_inputs(value: Any, where: str) -> Any:
    checked = _structure(lambda v, place: checks.check_inputs(checks.to_tensor(v, place), place), value, where)
    lengths = [len(tensor) for tensor in tensors_of(checked)]
    if len(set(lengths)) != 1:
        raise PliantError(f"inputs of different lengths {lengths}", where=where, fix="axis 0 counts samples")
    return checked


def _same_shape(name: str, inputs: Parts) -> None:
    def form(value: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors_of(value)]

    for split, value in inputs.items():
        if form(value) != form(inputs["train"]):
            problem = f"samples of {split} have shape and dtype {form(value)}, those of train {form(inputs['train'])}"
            raise PliantError(problem, where=name, fix="all splits must be alike")


def read_labels(raw: dict[str, Any], train_inputs: Any, classes: Sequence[str] | None) -> Labels:
    """Task, classes and tensors of raw targets.

    Args:
        raw: place -> targets, "train" first.
        train_inputs: tells next_token: int64 inputs of the same shape as their int64 targets.
        classes: class names where they are known.

    Raises:
        PliantError: bad labels, or different kinds in different splits.
    """
    arrays = {where: value if isinstance(value, Tensor) else np.asarray(value) for where, value in raw.items()}
    if all(isinstance(value, np.ndarray) and value.dtype.kind in "US" for value in arrays.values()):
        coded, names = checks.encode_names(list(arrays.values()))
        return Labels(dict(zip(arrays, coded, strict=True)), "classify", names)
    parts = {where: checks.check_targets(checks.to_tensor(value, where), where) for where, value in arrays.items()}
    if len({(part.dtype, part.shape[1:]) for part in parts.values()}) != 1:
        kinds = {where: f"{part.dtype} {list(part.shape[1:])}" for where, part in parts.items()}
        raise PliantError(f"targets differ in kind: {kinds}", fix="all splits must be alike")
    first = next(iter(parts.values()))
    if first.is_floating_point():
        pixels = isinstance(train_inputs, Tensor) and first.ndim == 4 and first.shape[2:] == _sides(train_inputs)
        return Labels(parts, "dense" if pixels else "regress", ())
    tokens = isinstance(train_inputs, Tensor) and train_inputs.dtype == torch.int64 and first.ndim > 1
    if tokens and train_inputs.shape == first.shape:
        size = 1 + max(int(train_inputs.max()), *(int(part.max()) for part in parts.values()))
        vocabulary = tuple(classes) if classes is not None else tuple(str(token) for token in range(size))
        checks.check_labels(parts, vocabulary)
        return Labels(parts, "next_token", vocabulary)
    return Labels(parts, "classify" if first.ndim == 1 else "dense", checks.check_labels(parts, classes))


def _sides(images: Tensor) -> torch.Size:
    """Height and width of raw images; empty for what are none."""
    whole = images.dtype == torch.uint8
    if images.ndim != 4 and not (whole and images.ndim == 3):
        return torch.Size()
    first = not whole or image_layout(tuple(images.shape), "inputs") == "NCHW"
    return images.shape[2:] if first else images.shape[1:3]


def cut_splits(splits: dict[str, Split], cut: Cut, name: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The three splits, those not given cut from train, all within the limit; and notes that say so.

    Raises:
        PliantError: too few samples.
    """
    missing = [split for split in ("test", "val") if split not in splits]
    train = splits["train"]
    count = max(1, round(cut.share * len(train)))
    if len(train) <= count * len(missing):
        problem = f"{len(train)} samples are too few to cut {' and '.join(missing)} from"
        raise PliantError(problem, where=name, fix="give more samples, or the splits themselves")
    order = torch.randperm(len(train), generator=seeded(cut.seed, "split"))
    made = dict(splits)
    for index, split in enumerate(missing):
        made[split] = train.select(order[index * count : (index + 1) * count].sort().values)
    if missing:
        made["train"] = train.select(order[len(missing) * count :].sort().values)
    notes = tuple(f"{split}: {count} of {len(train)} samples, cut with seed {cut.seed}" for split in missing)
    if cut.limit is not None:
        made = {split: _limited(part, cut, split) for split, part in made.items()}
        notes += (f"at most {cut.limit} samples per split, drawn with seed {cut.seed}",)
    return made, notes


def _limited(part: Split, cut: Cut, split: str) -> Split:
    if cut.limit is None or len(part) <= cut.limit:
        return part
    order = torch.randperm(len(part), generator=seeded(cut.seed, "limit", split))
    return part.select(order[: cut.limit].sort().values)


def _preprocessed(split: Split, infos: list[Preprocessing]) -> Split:
    steps = iter(infos)
    return Split(map_tensors(lambda raw: apply(raw, next(steps)), split.inputs), split.targets)


def dataset_of(source: Any, *, seed: int = 0, share: float = 0.1) -> Dataset:
    """See `Dataset.of`."""
    cut = Cut(seed, share)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | Path):
        from pliant.data.load import load  # load calls build: a cycle at import time

        return load(source, seed=seed, val_share=share)
    if isinstance(source, Mapping):
        return _of_mapping(source, cut)
    if isinstance(source, TorchDataset | DataLoader):
        return _of_torch({"train": source}, cut)
    if isinstance(source, tuple | list) and len(source) in (2, 4):
        if all(isinstance(part, TorchDataset | DataLoader) for part in source) and len(source) == 2:
            return _of_torch({"train": source[0], "test": source[1]}, cut)
        splits = ("train", "test")[: len(source) // 2]
        x, y = (dict(zip(splits, source[start::2], strict=True)) for start in (0, 1))
        return build("arrays", x, y, cut)
    kinds = "a Dataset, name, path, (x, y), (x_train, y_train, x_test, y_test), dict, torch Dataset or DataLoader"
    length = f" of {len(source)}" if isinstance(source, tuple | list) else ""
    raise TypeError(f"data must be {kinds}, got {type(source).__name__}{length}")


def _of_mapping(source: Mapping[str, Any], cut: Cut) -> Dataset:
    known = {f"{axis}_{split}" for axis in "xy" for split in ("train", "val", "test")}
    unknown = sorted(str(key) for key in set(source) - known)
    if unknown or not {"x_train", "y_train"} <= set(source):
        raise ValueError(f"a dict of data has the keys {', '.join(sorted(known))}, got {', '.join(map(str, source))}")
    x, y = pair_up(source, "data")
    return build("arrays", x, y, cut)


def pair_up(arrays: Mapping[str, Any], where: str) -> tuple[Parts, Parts]:
    """x and y by split, from keys x_train, y_train, x_val, ...; raises `PliantError` for an x without its y."""
    splits = [split for split in ("train", "val", "test") if f"x_{split}" in arrays or f"y_{split}" in arrays]
    for split in splits:
        for axis, other in ("xy", "yx"):
            if f"{axis}_{split}" not in arrays:
                raise PliantError(f"{other}_{split} without {axis}_{split}", where=where, fix="give both or neither")
    return {split: arrays[f"x_{split}"] for split in splits}, {split: arrays[f"y_{split}"] for split in splits}


def _of_torch(sources: Mapping[str, Any], cut: Cut) -> Dataset:
    x, y = {}, {}
    for split, source in sources.items():
        x[split], y[split] = _materialised(source, split)
    train = sources["train"]
    names = getattr(train.dataset if isinstance(train, DataLoader) else train, "classes", None)
    classes = names if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names) else None
    return build("torch data", x, y, cut, classes=classes, notes=("samples were read once, with their augmentation",))


def _materialised(source: Any, split: str) -> tuple[Any, Any]:
    """All inputs and all targets of a torch Dataset or DataLoader."""
    if isinstance(source, DataLoader | IterableDataset):
        items = list(source)
    else:
        items = [source[index] for index in range(len(source))]
    if not items:
        raise PliantError("empty", where=f"{split} data", fix="give at least one sample")
    if not isinstance(items[0], tuple | list) or len(items[0]) != 2:
        raise TypeError(f"torch data must yield (input, target), got {type(items[0]).__name__} in {split}")
    try:
        if isinstance(source, DataLoader):
            return _joined([item[0] for item in items]), _joined([item[1] for item in items])
        inputs, targets = default_collate([(_plain(item[0]), item[1]) for item in items])
    except (RuntimeError, TypeError) as error:
        raise PliantError(f"samples cannot be stacked ({error})", where=f"{split} data") from error
    return tuple(inputs) if isinstance(inputs, list) else inputs, targets


def _plain(value: Any) -> Any:
    """Images of Pillow and the like as arrays."""
    return np.array(value) if hasattr(value, "__array_interface__") and not isinstance(value, np.generic) else value


def _joined(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple | list) and first and isinstance(first[0], str):
        return [name for batch in batches for name in batch]
    return tuple(_joined(list(members)) for members in zip(*batches, strict=True))
