"""Dense tasks made of image data: every pixel has a target."""

import torch
from torch import Tensor

from pliant.core import PliantError, seeded
from pliant.data.dataset import Dataset, Split


def denoising(data: Dataset, *, noise: float = 0.5, seed: int = 0) -> Dataset:
    """Images with noise, and the images without it as targets.

    White Gaussian noise is added to the preprocessed images, once, so that every epoch and every network sees the same.
    The test split is made too, which does not count as reading that of `data`.

    Args:
        data: images float32 [n, C, H, W]; their labels are left out.
        noise: standard deviation, in the units of the preprocessed images (which have about 1 themselves).
        seed: of the noise; every split draws its own.

    Returns:
        A data set of the task `dense` with targets float32 [n, C, H, W]; loss and metric are `mse`.

    Raises:
        ValueError: `noise` is not positive.
        PliantError: `data` holds no images.
    """
    if not 0 < noise < float("inf"):
        raise ValueError(f"noise must be positive and finite, got {noise}")
    images = data.train.inputs
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise PliantError("there are no images to add noise to", where=data.name, fix="give float [n, C, H, W] inputs")

    def noisy(split: Split, name: str) -> Split:
        drawn = torch.randn(split.inputs.shape, generator=seeded(seed, "noise", name))
        return Split(split.inputs + noise * drawn, split.inputs)

    # `data.test` would count as a reading.
    train, val, test = noisy(data.train, "train"), noisy(data.val, "val"), noisy(data.__dict__["_test"], "test")
    notes = (*data.notes, f"noise with standard deviation {noise:g} was added to the images, seed {seed}")
    return Dataset(f"{data.name} with noise", train, val, test, "dense", (), data.preprocessing, notes)
