"""Structural pruning: an elastic network of which one member is kept."""

from itertools import islice
from typing import Any

from torch import nn

from pliant.core import Facts, PliantError, seeded
from pliant.data import Dataset
from pliant.elastic import elastic
from pliant.learn import Plain, Settings, train

_CALIBRATION_BATCHES = 16

FACTS = Facts(
    title="Pruning Filters for Efficient ConvNets",
    year=2016,
    room="compress",
    needs=("labels",),
    deviations=(
        "units are whole tied groups (all layers of a residual stream at once), not the filters of one layer",
        "the importance of a unit is that of `Elastic.sort_units`",
    ),
)


def prune(
    model: nn.Module,
    example: Any,
    *,
    keep: float = 0.5,
    data: Any = None,
    epochs: int = 3,
    settings: Settings = Settings(lr=3e-4),  # noqa: B008 - frozen
    seed: int = 0,
) -> nn.Module:
    """A really smaller network: the least important units of every group are left out, then the rest is fine-tuned.

    Li et al. 2016, "Pruning Filters for Efficient ConvNets" <https://arxiv.org/abs/1608.08710>, on tied groups: made
    elastic, units sorted by importance, cut to `keep` of every group, BatchNorm re-estimated and fine-tuned with
    `data`. Layers stay, depth is not touched.

    Args:
        model: any network that can be traced; not changed.
        example: an example input: a tensor, a tuple (positional) or a dict (keyword).
        keep: share of the units of every group to keep, in (0, 1], at least one; a multiple of 8 where there are more
            than 32.
        data: what to fine-tune on, as `Dataset.of` takes it; None prunes without any training.
        epochs: of fine-tuning; 0 only re-estimates BatchNorm.
        settings: of fine-tuning.
        seed: of fine-tuning and of the choice of calibration batches.

    Returns:
        A plain module with the original parameter names, on the model's device and in its mode.

    Raises:
        ValueError: `keep` outside (0, 1], or `epochs` below 0.
        PliantError: the network cannot be traced, or nothing in it bends.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    try:
        net = elastic(model, example, min_size=1, choices={"[!d]*": (float(keep), 1.0)})  # all kinds but depth
    except ValueError as error:
        raise PliantError(
            "nothing bends, so that nothing can be pruned", where=type(model).__name__, fix="pliant.elastic tells why"
        ) from error
    net.sort_units()
    config = net.space.uniform(keep)
    if data is None:
        return net.extract(config)
    dataset = Dataset.of(data, seed=seed)
    rows = settings.rows(len(dataset.train), Plain.batch_size)
    batches = dataset.train.batches(rows, generator=seeded(seed, "prune"))
    small = net.extract(config, calibrate=[inputs for inputs, _ in islice(batches, _CALIBRATION_BATCHES)])
    if epochs:
        train(small, dataset, recipe=Plain(), epochs=epochs, settings=settings, seed=seed)
    return small
