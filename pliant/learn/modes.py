"""Borrowing a network: its mode and its device are given back."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """The network in train or eval mode; afterwards every module has the mode it had before."""
    modes = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(net: nn.Module) -> torch.device:
    """Where the first parameter or buffer is; the CPU for a network without any."""
    for tensor in chain(net.parameters(), net.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def on_device(net: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """The network on a device (None: where it is); afterwards it is where it was."""
    home = device_of(net)
    there = home if device is None else torch.device(device)
    if there == home:
        yield home
        return
    net.to(there)
    try:
        yield there
    finally:
        net.to(home)


@contextmanager
def own_randomness(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """torch's global generators for this block alone: they go on afterwards as if it had not run.

    Args:
        device: whose generator is kept beside that of the CPU.
        seed: what they start from inside; None leaves them as they are.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
