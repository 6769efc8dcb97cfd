"""Grid cells of a detector's feature levels, in the order of the rows in the detector's outputs."""

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
        # A level covers the whole input, so a cell that the input fills only partly counts.
        height, width = -(-size[0] // stride), -(-size[1] // stride)
        y, x = np.divmod(np.arange(height * width).repeat(kinds), width)
        cells.append(np.stack([x, y], axis=1).astype(np.float32))
        steps.append(np.full(len(x), stride, np.float32))
    columns, lengths = np.concatenate(cells), np.concatenate(steps)
    columns.flags.writeable = lengths.flags.writeable = False
    return columns, lengths


def cells_of_levels(size: tuple[int, int], strides: Sequence[int], kinds: int = 1) -> tuple[FloatArray, FloatArray]:
    """Return the grid cell and the stride of each row in a detector's outputs.

    Rows are ordered level by level, in each level by rows of cells, and in each row of cells from left to right.

    Args:
        size: height and width of the model's input in pixels.
        strides: input pixels per cell, one number per feature level.
        kinds: number of output rows per cell.

    Returns:
        Column and row of the cell ``[A, 2]``, and input pixels per cell ``[A]``; both read-only.
    """
    return _cells(size, tuple(strides), kinds)
