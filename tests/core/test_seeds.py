import subprocess
import sys

import pytest
import torch

from pliant.core import seeded


def draws(seed: int, *purpose: str | int) -> list[int]:
    return torch.randint(2**31, (8,), generator=seeded(seed, *purpose)).tolist()


def test_same_seed_and_purpose_same_stream() -> None:
    assert draws(0, "split") == draws(0, "split")
    assert seeded(0, "split").initial_seed() == seeded(0, "split").initial_seed()


def test_every_seed_and_purpose_has_a_stream_of_its_own() -> None:
    streams = [draws(*key) for key in ((0,), (1,), (0, "split"), (0, "sample"), (0, "sample", 1), (0, "sample", 2))]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(0, "split")
    assert torch.equal(before, torch.get_rng_state())


def test_streams_are_the_same_in_another_process() -> None:
    code = "from pliant.core import seeded; print(seeded(3, 'search', 7).initial_seed())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == seeded(3, "search", 7).initial_seed()


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        seeded(-1)
