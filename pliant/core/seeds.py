"""Randomness that is asked for by name."""

import hashlib

import torch


def seeded(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose under one seed.

    Streams of different purposes are independent, so that adding a draw in one place moves nothing elsewhere.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    text = "/".join([str(seed), *map(str, purpose)])
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)
    return generator
