"""Comparison of outputs that differ by rounding: of a batch and single frames, or of a model's parts and the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["equal_but_for_rounding"]

_ROUNDING = 1e-3
"""Largest difference of two outputs, relative to the expected output's largest value.

Kernels for more rows, or with other nodes around them, add float32 numbers in another order. Graphics cards round
factors to TF32.
"""


def equal_but_for_rounding(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Return whether two arrays are equal but for rounding; infinities and NaN must be in the same places."""
    if found.shape != expected.shape:
        return False
    one, other = found.astype(np.float64), expected.astype(np.float64)
    most = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0.0)
    return np.allclose(one, other, rtol=0.0, atol=_ROUNDING * float(most), equal_nan=True)
