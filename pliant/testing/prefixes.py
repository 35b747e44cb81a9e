"""How the widths of a one-pass network are held against its columns."""

import copy
from typing import Any

import torch
from torch import nn

from pliant.core import as_call, call
from pliant.elastic import OnePass
from pliant.elastic.recipes.one_pass import columns
from pliant.testing.court import Court, gradient, loss_of, run_seeded
from pliant.testing.subject import gap

CLOSE = 1e-5
"""Largest relative difference in single precision between a width and its column."""


def is_repeatable(net: OnePass, example: Any) -> bool:
    """Whether training draws nothing at random: two forwards under different seeds agree."""
    one, two = copy.deepcopy(net).train(), copy.deepcopy(net).train()
    with torch.no_grad():
        first = run_seeded(one, example)
        torch.manual_seed(2)
        return gap(first, call(two, example)) == 0


def prefixes_run(net: OnePass, example: Any, court: Court) -> float:
    """In evaluation: every width alone, shell after shell and taken out; returns the largest difference."""
    args, kwargs = as_call(example)
    with torch.no_grad():
        rows, worst = columns(call(net.eval(), example), net.widths), 0.0
        for k, (row, shell) in enumerate(zip(rows, net.anytime(*args, **kwargs), strict=True), 1):
            ways = {"alone": call(net.at(k), example), "shell after shell": shell,
                    "taken out": call(net.extract(k), example)}  # fmt: skip
            worst = max(worst, *(court.close(mine, row, f"width {k} {way}", CLOSE) for way, mine in ways.items()))
    court.demand(gap(rows[0], rows[-1]) > 10 * CLOSE, "all widths give the same, so that nothing can be seen")
    return worst


def prefixes_train(net: OnePass, example: Any, court: Court) -> float:
    """In training: outputs, gradients and batch statistics of every width; returns the largest difference."""
    whole, worst = copy.deepcopy(net.train()), 0.0
    rows = columns(run_seeded(whole, example), whole.widths)
    for k, row in enumerate(rows, 1):
        alone, small = copy.deepcopy(net), net.extract(k)
        what = f"width {k} in training"
        for way, module, mine in (("alone", alone, alone.at(k)), ("taken out", small, small)):
            output = run_seeded(mine, example)
            worst = max(worst, court.close(output, row, f"{what} {way}", CLOSE))
            left = [dict(m.named_buffers()) for m in (whole.extract(k), small)] if module is small else []
            for name in left[0] if left else ():
                worst = max(worst, court.close(left[1][name], left[0][name], f"statistics {name} of {what}", CLOSE))
            _backward(output)
        _backward(row)
        found = _gradient_gap(alone, whole)
        court.demand(found <= CLOSE, f"gradients of {what} differ by {found:.3g} of the largest")
        worst = max(worst, found)
        whole.zero_grad()
    return worst


def _backward(output: Any) -> None:
    loss = loss_of(output)
    if loss.requires_grad:
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]


def _gradient_gap(net: nn.Module, other: nn.Module) -> float:
    """Largest difference between two networks' gradients, relative to the largest gradient of all.

    Not tensor by tensor: some gradients are nothing but rounding (that of a bias before a normalisation, say).
    """
    pairs = [(gradient(a), gradient(b)) for a, b in zip(net.parameters(), other.parameters(), strict=True)]
    scale = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    worst = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    return worst / scale if scale else worst
