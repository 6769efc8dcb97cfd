"""Changes of float32 weights, rounded to 8 bits with a scale per channel.

The weights that a receiver gets are ``old + steps * scale``, with one rounding of the product and one of the sum, in
IEEE float32. So sender and receiver compute the same bits on every machine. Accuracies must be measured on these
weights, not on the ones that were rounded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_change", "round_change", "rounding_error"]

_LEVELS = 127
"""Maximum absolute value of an 8-bit difference of weights."""
_Floats = NDArray[np.float32]


def round_change(old: _Floats, new: _Floats) -> tuple[NDArray[np.int8], _Floats]:
    """Return a change of weights as 8-bit steps of the weights' shape, and the size of a step per first index.

    Args:
        old: weights before, float32 of two or more dimensions; the first is the channel.
        new: weights after, of the same shape.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        change = (new - old).reshape(len(new), -1)
        scale = np.abs(change).max(1, initial=0) / np.float32(_LEVELS)
        steps = change / np.maximum(scale, np.finfo(np.float32).tiny)[:, None]
    # Converting NaN to an integer gives other values on other machines.
    whole = np.nan_to_num(np.rint(steps), nan=0.0).clip(-_LEVELS, _LEVELS)
    return whole.astype(np.int8).reshape(new.shape), scale


def add_change(old: _Floats, steps: NDArray[np.int8], scale: _Floats) -> _Floats:
    """Return old weights with a rounded change; ``scale`` must have a shape that NumPy stretches to that of ``old``."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.multiply(steps.astype(np.float32), scale, dtype=np.float32)
        return np.add(old, product, dtype=np.float32)


def rounding_error(old: _Floats, new: _Floats) -> float:
    """Return the error that rounding a change gives the new weights, in parts of them (Euclidean norms); inf where
    weights are not finite.

    Args:
        old: weights before, as for :func:`round_change`.
        new: weights after.
    """
    steps, scale = round_change(old, new)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        made = add_change(old, steps, scale.reshape(-1, *[1] * (old.ndim - 1)))
        error = np.linalg.norm((made - new).ravel()) / np.linalg.norm(new.ravel())
    return float(error) if np.isfinite(error) else float("inf")
