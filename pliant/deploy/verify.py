"""Artifacts seen from torch: checked again, and run as a module."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.core.calls import as_call
from pliant.export.onnx_model import map_arrays
from pliant_runtime import ArtifactError, Family, load


def verify(path: str | Path, *, threads: int = 1) -> dict[str, Any]:
    """Check every byte of an artifact and run every sub-network on the rows stored with it.

    Returns:
        `name`, `sha256` (to be passed to `pliant_runtime.load`), `entries`, and `max_rel_error`: the largest
        difference on this machine to what torch answered when the artifact was made, relative to the largest answer.

    Raises:
        PliantError: the artifact is damaged, or answers differently.
    """
    try:
        family = load(path, threads=threads)
        gaps = family.check()
    except ArtifactError as error:
        fix = "copy the artifact again, or compile it anew"
        raise PliantError(error.problem, where=str(Path(path) / error.file), fix=fix) from error
    worst = max(gaps.values(), default=0.0)
    return {"name": family.name, "sha256": family.digest, "entries": len(family), "max_rel_error": worst}


class Compiled(nn.Module):
    """One sub-network of a loaded artifact as a module without parameters, for measuring it like any other.

    Args:
        family: a loaded artifact.
        entry: number of the sub-network.
    """

    def __init__(self, family: Family, entry: int) -> None:
        super().__init__()
        self._family, self._entry = family, entry

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for preprocessed inputs, as tensors."""
        inputs = kwargs or (args[0] if self._family.signature.call == "tensor" else args)
        return map_arrays(self._family.run(arrays(inputs), entry=self._entry, preprocessed=True))


def arrays(inputs: Any) -> Any:
    """Inputs of a network (tensor, tuple or dict) as the runtime takes them: arrays, without constants."""
    args, kwargs = as_call(inputs)
    if kwargs:
        return {name: _array(item) for name, item in kwargs.items() if isinstance(item, Tensor)}
    found = [_array(item) for item in args if isinstance(item, Tensor)]
    return found[0] if isinstance(inputs, Tensor) else tuple(found)


def _array(tensor: torch.Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
