"""Cells of feature levels that lie one behind the other in a detector's rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .decoder import FloatArray

__all__ = ["cells_of_levels"]


@lru_cache(16)
def _cells(size: tuple[int, int], strides: tuple[int, ...], kinds: int) -> tuple[FloatArray, FloatArray]:
    cells, steps = [], []
    for stride in strides:
        # A level covers the input: a cell that the input fills in part counts.
        height, width = -(-size[0] // stride), -(-size[1] // stride)
        y, x = np.divmod(np.arange(height * width).repeat(kinds), width)
        cells.append(np.stack([x, y], axis=1).astype(np.float32))
        steps.append(np.full(len(x), stride, np.float32))
    columns, lengths = np.concatenate(cells), np.concatenate(steps)
    columns.flags.writeable = lengths.flags.writeable = False
    return columns, lengths


def cells_of_levels(size: tuple[int, int], strides: Sequence[int], kinds: int = 1) -> tuple[FloatArray, FloatArray]:
    """Return the cell and the stride of each row: level by level, row by row of cells, left to right.

    Args:
        size: height and width of the input in pixels.
        strides: input pixels per cell, one number per level.
        kinds: rows per cell.

    Returns:
        Column and row of the cell ``[A, 2]``, and input pixels per cell ``[A]``; both read-only.
    """
    return _cells(size, tuple(strides), kinds)
