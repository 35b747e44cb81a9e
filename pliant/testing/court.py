"""How laws compare: outputs, gradients, statistics and costs of two networks that must be the same."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pliant.core import Config, call, tensors_of
from pliant.elastic import Elastic
from pliant.testing.subject import LawBroken, gap

CLOSE = 1e-6
"""Largest relative difference in single precision between two ways of computing the same thing."""


class Court:
    """Raises `LawBroken` for one law on one network."""

    def __init__(self, network: str, law: str) -> None:
        self._network, self._law = network, law

    def demand(self, holds: bool, figures: str) -> None:
        """The law is broken unless `holds`."""
        if not holds:
            raise LawBroken(self._network, self._law, figures)

    def close(self, got: object, wanted: object, what: str, tolerance: float = CLOSE) -> float:
        """Two outputs are the same up to a relative difference, which is returned."""
        found = gap(got, wanted)
        self.demand(found <= tolerance, f"{what} differ by {found:.3g} (relative), allowed {tolerance:.0e}")
        return found

    def refuses(self, kind: type[Exception], action: Callable[[], object], what: str, *words: str) -> None:
        """`action` raises `kind` with one line that holds `words`."""
        try:
            action()
        except kind as error:
            text = str(error)
            missing = [word for word in words if word not in text]
            self.demand("\n" not in text and bool(text), f"{what}: the message has several lines or none: {text!r}")
            self.demand(not missing, f"{what}: the message does not name {', '.join(missing)}: {text!r}")
        else:
            self.demand(False, f"{what} is accepted; {kind.__name__} expected")


def run_seeded(net: nn.Module, example: Any) -> Any:
    """The output under a fixed seed, so that dropout draws the same."""
    torch.manual_seed(1)
    return call(net, example)


def loss_of(output: Any) -> Tensor:
    """A number on which every output depends."""
    return torch.stack([t.square().mean() for t in tensors_of(output) if t.is_floating_point()]).sum()


def mask_of(shape: Sequence[int], ranges: Sequence[Any]) -> Tensor:
    """Where a sub-network reads a full-size tensor."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for axis, runs in enumerate(ranges):
        if runs is not None:
            line = torch.zeros(shape[axis], dtype=torch.bool)
            for begin, end in runs:
                line[begin:end] = True
            mask &= line.view([-1 if a == axis else 1 for a in range(len(shape))])
    return mask


def masks_of(net: Elastic, config: Config) -> dict[str, Tensor]:
    """For every entry of the state dict, where `config` reads it; nowhere, where it does not use it."""
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name, ranges in net.reads(config).items():
        if name in shapes:
            masks[name] = mask_of(shapes[name], ranges)
    return masks


def compare_gradients(net: nn.Module, model: nn.Module, outputs: tuple[Any, Any], mode: str, court: Court) -> float:
    """Every parameter gets the gradient that it gets in the original."""
    worst = 0.0
    for module, output in zip((net, model), outputs, strict=True):
        module.zero_grad()
        loss = loss_of(output)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    theirs = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in net.named_parameters():
        what = f"gradients of {name} in {mode}"
        if name not in theirs:
            court.demand(not gradient(parameter).any(), f"{what}: the original has no such parameter")
            continue
        worst = max(worst, court.close(gradient(parameter), gradient(theirs[name]), what, 1e-5))
    return worst


def gradient(parameter: nn.Parameter) -> Tensor:
    """Its gradient, zeros where there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def compare_parts(net: Elastic, small: nn.Module, config: Config, court: Court, before: Mapping[str, Tensor]) -> float:
    """Gradients and statistics of the module taken out equal the slices; outside there is nothing."""
    masks, sources, worst = masks_of(net, config), net.sources(config), 0.0
    inner = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in net.named_parameters():
        mask = masks[name]
        grad = gradient(parameter)
        court.demand(not grad[~mask].any(), f"gradient of {name} outside the slices of {dict(config)}")
        if name in inner and name in sources:
            what, part = f"gradients of {name} in {dict(config)}", mask_of(grad.shape, sources[name][1])
            worst = max(worst, court.close(grad[part], gradient(inner[name]).reshape(-1), what, 1e-5))
    theirs = dict(small.named_buffers())
    for name, buffer in net.named_buffers():
        if name in masks:
            inside = masks[name]
            court.demand(torch.equal(buffer[~inside], before[name][~inside]), f"{name} moved outside {dict(config)}")
            if name in theirs:
                worst = max(worst, court.close(buffer[inside], theirs[name].reshape(-1), f"statistics {name}"))
    return worst


NOT_COUNTED = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "aten.bilinear", "aten.mv", "aten.dot",
                "aten.vdot", "transformers.grouped_mm_fallback")  # fmt: skip
"""Operators that torch's counter does not see."""


def counted_flops(net: nn.Module, example: Any) -> float:
    """FLOPs of one sample by torch's own counter; attention is run in its plain form, which the counter knows."""
    net = copy.deepcopy(net).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(net, example)
    return float(counter.get_total_flops()) / len(tensors_of(example)[0])
