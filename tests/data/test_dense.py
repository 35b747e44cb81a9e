"""Dense tasks made of images."""

import pytest
import torch

from pliant.core import PliantError
from pliant.data import Dataset, denoising, load


def test_denoising_adds_the_same_noise_every_time_and_reads_no_test_split() -> None:
    digits = load("digits", limit=200)
    data, again, other = denoising(digits, noise=0.5), denoising(digits, noise=0.5), denoising(digits, seed=1)
    assert digits.test_reads == 0  # type: ignore[attr-defined]
    assert (data.task, data.loss, data.outputs, data.shape) == ("dense", "mse", 1, (1, 8, 8))
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.inputs, other.train.inputs)
    for clean, made in ((digits.train, data.train), (digits.val, data.val), (digits.test, data.test)):
        assert torch.equal(made.targets, clean.inputs)
        noise = made.inputs - clean.inputs
        assert abs(float(noise.std()) - 0.5) < 0.02
        assert abs(float(noise.mean())) < 0.02
    assert not torch.equal(data.train.inputs - data.train.targets, data.val.inputs - data.val.targets)
    assert "standard deviation 0.5" in data.notes[-1]


def test_denoising_refuses_what_is_no_image_and_no_noise() -> None:
    x = torch.randn(30, 4)
    with pytest.raises(PliantError, match="no images to add noise to"):
        denoising(Dataset.of((x, x[:, 0])))
    for noise in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"noise must be positive and finite, got {noise}"):
            denoising(load("digits", limit=20), noise=noise)
