"""How far two arrays are apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def gap(wanted: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    """Largest absolute difference, and the same divided by the largest finite magnitude of `wanted`.

    Equal infinities and NaN at the same places count as equal; a NaN on one side only gives NaN, and another shape or
    dtype infinity.
    """
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return float("inf"), float("inf")
    if not wanted.size:
        return 0.0, 0.0
    one, other = wanted.astype(np.float64), got.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        largest = float(np.where(same, 0.0, np.abs(one - other)).max())
    finite = np.abs(one[np.isfinite(one)])
    scale = float(finite.max()) if finite.size else 0.0
    return largest, largest / scale if scale > 0 else largest
