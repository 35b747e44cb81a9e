"""Narrow networks cut by hand: the reference that knows nothing of labels and patches."""

from collections.abc import Mapping

import torch
from torch import nn

from pliant.core import Selection
from pliant.elastic import elastic
from tests.graph.tiny import Row


def check_by_hand(row: Row, cuts: Mapping[str, int | tuple[int, int]], *, keep: int | None = None) -> None:
    """Compare the extracted network of one group with the row's own code on parameters cut by hand.

    Args:
        row: a network with one group, whose code takes all sizes from its operands.
        cuts: parameter to the axis that is cut, or to (axis, entries of each unit). A blank after a name cuts another
            axis of the same parameter.
        keep: how many units stay, or half of them.
    """
    model = row.subject().make()
    net = elastic(model, row.x, min_size=1, check=False)
    (group,) = net.graph.groups
    keep = keep or group.units // 2
    small = row.subject().make()
    for name, cut in cuts.items():
        axis, each = cut if isinstance(cut, tuple) else (cut, 1)
        _cut(small, name.strip(), axis, keep * each)
    got = net.extract(Selection({group.name: range(keep)}))
    for training in (False, True):
        with torch.no_grad():
            wanted = small.train(training)(row.x)
            torch.testing.assert_close(got.train(training)(row.x), wanted, rtol=1e-5, atol=1e-6)


def _cut(model: nn.Module, name: str, axis: int, size: int) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    tensor = getattr(owner, leaf)
    part = tensor.detach().narrow(axis, 0, size).clone()
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(part)
    else:
        owner._buffers[leaf] = part
