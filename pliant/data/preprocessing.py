"""What is done to raw samples before a network sees them, as JSON data that travels with the network.

Keys: `dtype` (of the raw samples: uint8, float32, int64), `layout` (axes of the raw batch), `shape` (of one raw
sample), `scale` (raw values are divided by it), `mean` and `std` (per channel or feature, after scaling; empty for
none). Layouts: NHW, NHWC, NCHW (images; the result is NCHW, mean and std per C), NF (tables; per F), NT (tokens,
unchanged), and N* (anything else, only scaled). Several inputs: {"inputs": [one such dict per tensor]}, or {} where all
are taken as they are.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pliant.core import PliantError

Preprocessing = dict[str, Any]
IMAGES = ("NHW", "NHWC", "NCHW")
_CHANNELS = (1, 3, 4)


def image_layout(shape: tuple[int, ...], where: str) -> str:
    """The layout of a batch of uint8 images, by the axis that has 1, 3 or 4 entries.

    Raises:
        PliantError: neither or both of axis 1 and the last axis look like channels.
    """
    if len(shape) == 3:
        return "NHW"
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        problem = f"uint8 images of shape {shape}: cannot tell the channel axis"
        raise PliantError(problem, where=where, fix="give float32 [n, channels, height, width]")
    return "NCHW" if first else "NHWC"


def fit(train: Tensor, where: str, *, normalise: bool = False, scale: float = 1.0) -> Preprocessing:
    """The preprocessing for a raw training batch; its mean and std are taken from this batch alone.

    uint8 images and uint8 tables are divided by 255 and normalised; tokens are left alone; float data are left alone
    unless `normalise` is true.

    Args:
        train: raw uint8, float32 or int64 [n, ...].
        where: its name, for errors.
        normalise: whether float data are normalised per channel (4 axes, NCHW) or per feature (2 axes).
        scale: divides float data first.
    """
    info: Preprocessing = {
        "dtype": str(train.dtype).removeprefix("torch."),
        "layout": {2: "NF", 4: "NCHW"}.get(train.ndim, "N*"),
        "shape": list(train.shape[1:]),
        "scale": scale,
        "mean": [],
        "std": [],
    }
    if train.dtype == torch.int64:
        return {**info, "layout": "NT"}
    if train.dtype == torch.uint8:
        info["scale"], normalise = 255.0, train.ndim <= 4
        if train.ndim in (3, 4):
            info["layout"] = image_layout(tuple(train.shape), where)
    if normalise and info["layout"] != "N*":
        info["mean"], info["std"] = _moments(_arrange(train, info))
    return info


def _arrange(raw: Tensor, info: Preprocessing) -> Tensor:
    """A fresh float32 tensor, scaled, channels on axis 1."""
    if info["layout"] == "NHW":
        raw = raw.unsqueeze(1)
    if info["layout"] == "NHWC":
        raw = raw.permute(0, 3, 1, 2).contiguous()
    x = raw.to(torch.float32, copy=True)
    return x.div_(info["scale"]) if info["scale"] != 1.0 else x


def _moments(x: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per index of axis 1; a constant one keeps std 1."""
    mean, std = [], []
    for index in range(x.shape[1]):
        centre = float(x[:, index].mean(dtype=torch.float64))
        deviation = math.sqrt(float((x[:, index] - centre).square().mean(dtype=torch.float64)))
        mean.append(centre)
        std.append(deviation if deviation > 1e-6 * max(1.0, abs(centre)) else 1.0)
    return mean, std


def apply(raw: Tensor, info: Preprocessing) -> Tensor:
    """Raw samples as the network wants them: float32, or int64 tokens unchanged.

    Args:
        raw: [n, *info["shape"]].
        info: see the module's description.

    Raises:
        PliantError: samples of another shape.
    """
    if list(raw.shape[1:]) != list(info["shape"]):
        raise PliantError(f"samples of shape {list(raw.shape[1:])}", fix=f"give samples of shape {info['shape']}")
    if info["layout"] == "NT":
        return raw.to(torch.int64)
    x = _arrange(raw, info)
    if info["mean"]:
        axes = (1, -1) + (1,) * (x.ndim - 2)
        x.sub_(torch.tensor(info["mean"]).view(axes)).div_(torch.tensor(info["std"]).view(axes))
    return x


def combined(infos: list[Preprocessing]) -> Preprocessing:
    """One preprocessing for all inputs of a network, from one per input tensor."""
    if len(infos) == 1:
        return infos[0]
    changed = any(info["dtype"] == "uint8" or info["scale"] != 1.0 or info["mean"] for info in infos)
    return {"inputs": infos} if changed else {}
