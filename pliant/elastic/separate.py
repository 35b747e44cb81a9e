"""Separate training: what sub-networks reach when each is trained alone, from a fresh start."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pliant.core import Config, PliantError, copied, read_json, sha256_file, write_atomic, write_json
from pliant.data import Dataset
from pliant.elastic.elastic import Elastic
from pliant.elastic.extract import parameter_of
from pliant.learn import Plain, Settings, train
from pliant.learn.run_folder import fingerprint

FORMAT = 1
_INDEX, _WEIGHTS = "separate.json", "weights.safetensors"
_GAINS = ((1 / 3, 1.0, 2.0), (1 / 3, 1.0, 2.0), (2.0,))
"""Variance times fan: of torch's own starts, LeCun's and He's over the inputs or the outputs, Glorot's over both."""


@dataclass(frozen=True)
class Separate:
    """A network of a sub-network's sizes, trained alone.

    Args:
        config: the sub-network's.
        module: the trained network, in eval mode.
        metric: name of the task's.
        val: that metric on the validation split; None without one.
        epochs: of its training.
        cpu_seconds: of its training, all threads together.
    """

    config: Config
    module: nn.Module = field(repr=False, compare=False)
    metric: str
    val: float | None
    epochs: int
    cpu_seconds: float


def separate(
    net: Elastic,
    data: Any,
    *,
    configs: Iterable[Mapping[str, int | bool] | Any],
    fresh: nn.Module,
    epochs: int = 10,
    run: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    seed: int = 0,
) -> list[Separate]:
    """Train networks of sub-networks' sizes, each alone: what a family has to be compared with.

    A start is the sub-network's part of `fresh`, each weight spread as it would be in a network of that size: where the
    spread of the whole weight follows one of the usual rules (a variance of 1/3, 1 or 2 over its inputs or its outputs,
    or 2 over both together), the part is scaled to follow it, too. Kernel transforms start as plain crops.

    With the family's run folder, trainings are kept in RUN/separate, each under what decides it: what was trained is
    not trained again, and one that was stopped goes on. RUN/separate.json tells of those asked for last; `pliant
    report` compares them with the family on the test split.

    Args:
        net: the family; only its sizes are read, it is not changed.
        data: what the family was trained on, as for `pliant.train`.
        configs: sub-networks: configs, or anything with a `.config`, such as the points of a front.
        fresh: the network the family was made of, untrained; it is not changed.
        epochs: passes over the training split, of each.
        run: the family's run folder; None keeps nothing on the disk.
        settings: as for `pliant.train`; give the family's for a fair comparison.
        seed: of the data's order and of dropout.

    Returns:
        One for each different config, in their order.

    Raises:
        ValueError: no configs, one that the family does not have, or whatever `pliant.train` refuses.
        PliantError: `fresh` is another network, or as in `pliant.train`.
    """
    dataset = Dataset.of(data, seed=seed)
    chosen = list(dict.fromkeys(net.space.validate(getattr(config, "config", config)) for config in configs))
    if not chosen:
        raise ValueError("configs must name at least one sub-network, got none")
    root = None if run is None else Path(run)
    found: list[Separate] = []
    rows: list[dict[str, Any]] = []
    for config in chosen:
        module = fresh_start(net, fresh, config)
        begun = fingerprint(module, dataset, recipe=Plain(), epochs=epochs, settings=settings, seed=seed)
        folder = None if root is None else root / "separate" / _key(config, module, begun)
        history = train(module, dataset, recipe=Plain(), epochs=epochs, run=folder, settings=settings, seed=seed)
        told: dict[str, Any] = {"metric": dataset.metric.name, "val": history.val, "epochs": epochs}
        found.append(Separate(config, module.eval(), cpu_seconds=history.cpu_seconds, **told))
        if root is not None and folder is not None:
            write_atomic(folder / _WEIGHTS, save(_tensors(module)))
            told |= {"cpu_seconds": history.cpu_seconds, "folder": folder.relative_to(root).as_posix()}
            rows.append({"config": dict(config), **told, "sha256": sha256_file(folder / _WEIGHTS)})
            write_json(root / _INDEX, {"format": FORMAT, "networks": rows})
    return found


def separated(run: str | Path, net: Elastic) -> list[Separate]:
    """What `separate` has left in a run folder; nothing where it was not called.

    Args:
        run: the family's run folder.
        net: the family.

    Raises:
        PliantError: files that are missing, damaged, or of another network.
    """
    root = Path(run)
    if not (root / _INDEX).is_file():
        return []
    data = read_json(root / _INDEX)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PliantError(f"not of format {FORMAT}", where=str(root / _INDEX), fix="train separately again")
    found = []
    for row in data["networks"]:
        path = root / row["folder"] / _WEIGHTS
        try:
            config, content = net.space.validate(row["config"]), path.read_bytes()
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                raise ValueError("its content is not what was written")
            with net._statistics.quiet():
                module = net.extract(config)
            module.load_state_dict(load(content))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            problem = f"no separately trained network of this family ({str(error).splitlines()[0]})"
            raise PliantError(problem, where=str(path), fix="train separately again") from error
        told = {name: row[name] for name in ("metric", "val", "epochs", "cpu_seconds")}
        found.append(Separate(config, module.eval(), **told))
    return found


def fresh_start(net: Elastic, fresh: nn.Module, config: Config) -> nn.Module:
    """A network of a sub-network's sizes, as it is before any training; see `separate`.

    Raises:
        PliantError: `fresh` has other parameters than the family was made of.
    """
    twin = cast(Elastic, copied(net)).train()
    twin.remember(())
    try:
        twin.load_state_dict(fresh.state_dict())
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        fix = "give the module that pliant.elastic was called with, as it was before training"
        raise PliantError(f"fresh is not the network of this family ({line})", where=net.name, fix=fix) from error
    wholes = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in twin._transforms.names:
            matrix = parameter_of(twin, name)
            matrix.copy_(torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        module = twin.extract(config)
        for name, part in module.named_parameters():
            if name in wholes:
                part.mul_(spread_factor(wholes[name], part.shape))
    return module


def spread_factor(whole: Tensor, shape: tuple[int, ...]) -> float:
    """What a part of a fresh weight is multiplied by, so that it is spread as a fresh weight of its own shape is.

    1 where the spread of the whole follows none of the usual rules within what chance explains: a constant one stays.

    Args:
        whole: the whole fresh weight.
        shape: of the part.
    """
    if whole.dim() < 2 or tuple(whole.shape) == tuple(shape):
        return 1.0
    variance = float(whole.double().square().mean())
    within = min(0.25, 4 * math.sqrt(2 / whole.numel()))
    fans = zip(_fans(tuple(whole.shape)), _fans(tuple(shape)), _GAINS, strict=True)
    found = [(abs(variance * fan / gain - 1), math.sqrt(fan / own)) for fan, own, gains in fans for gain in gains]
    off, factor = min(found, key=lambda rule: rule[0])  # of two that fit alike the first: inputs
    return factor if off <= within else 1.0


def _fans(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Inputs, outputs, and both together, of a weight [out, in, ...] as torch counts them."""
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps, (shape[0] + shape[1]) * taps


def _key(config: Config, module: nn.Module, begun: Mapping[str, Any]) -> str:
    """A name for a training by all that decides it, the start included."""
    digest = hashlib.sha256(json.dumps([dict(config), begun], sort_keys=True).encode())
    for name, tensor in _tensors(module).items():
        digest.update(name.encode() + tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers by name, on the CPU; what is tied is there under each of its names."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
