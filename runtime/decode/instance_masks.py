"""Masks of detected objects from prototype masks and one set of coefficients per object.

Bolya et al., "YOLACT: Real-time Instance Segmentation", section 3.2.
"""

from __future__ import annotations

import math

import numpy as np

from ...frames.preprocess import Geometry
from .boxes import Indices
from .decoder import FloatArray
from .results import Mask

__all__ = ["prototype_masks"]


def prototype_masks(
    coefficients: FloatArray, prototypes: FloatArray, boxes: FloatArray, geometry: Geometry
) -> tuple[Mask | None, ...]:
    """Return the mask of each object at the frame's size: sigmoid(coefficients @ prototypes) above 0.5, inside the box.

    Logits are enlarged bilinearly, as Ultralytics does, and only in the box. Cells outside the frame do not count:
    at the frame's edge the outermost cell is repeated. The mask of an object without any pixel is None.

    Args:
        coefficients: weights of M prototypes for each of K objects, ``[K, M]``.
        prototypes: ``[M, h, w]``, which cover the whole input.
        boxes: boxes of the objects, ``[K, 4]`` in input pixels.
        geometry: position of the frame in the input.
    """
    height, width = prototypes.shape[1:]
    edges = geometry.to_source(boxes)
    masks: list[Mask | None] = []
    for weights, (left, top, right, bottom) in zip(coefficients, edges.tolist(), strict=True):
        # A pixel belongs to the box if its top left corner lies in the box, as in Ultralytics' crop_mask.
        columns, rows = (math.ceil(left), math.ceil(right)), (math.ceil(top), math.ceil(bottom))
        if columns[0] == columns[1] or rows[0] == rows[1]:
            masks.append(None)
            continue
        y, next_y, part_y = _positions(rows, geometry, 0, height)
        x, next_x, part_x = _positions(columns, geometry, 1, width)
        region = prototypes[:, y[0] : next_y[-1] + 1, x[0] : next_x[-1] + 1]
        logits = np.tensordot(weights, region, 1)
        tall = _between(logits, y - y[0], next_y - y[0], part_y[:, None])
        inside = _between(tall.T, x - x[0], next_x - x[0], part_x[:, None]) > 0
        found = Mask.of(inside.T, geometry.source, (rows[0], columns[0])) if inside.any() else None
        masks.append(found)
    return tuple(masks)


def _positions(
    pixels: tuple[int, int], geometry: Geometry, axis: int, count: int
) -> tuple[Indices, Indices, FloatArray]:
    """Return the two cells of a prototype mask that each pixel of the frame lies between, along one axis.

    Args:
        pixels: first pixel, and the pixel after the last.
        geometry: position of the frame in the input.
        axis: 0 for rows, 1 for columns.
        count: number of cells along the axis, which cover the input.

    Returns:
        For K pixels: the cell before the pixel's centre, the cell after, and its weight (0 to 1), each ``[K]``.
    """
    cell = geometry.input[axis] / count
    start, length = geometry.offset[axis], geometry.valid[axis]
    centres = (np.arange(*pixels) + 0.5) * (length / geometry.source[axis]) + start
    # Ultralytics cuts the frame out of the prototypes, enlarged first until the padding ends between two cells.
    edge = 0.5 * math.gcd(round(cell), geometry.input[axis] - length, start)
    inside = np.clip(centres, start + edge, max(start + edge, start + length - edge))
    places = np.clip(inside / cell - 0.5, 0, count - 1)
    before = places.astype(np.intp)
    return before, np.minimum(before + 1, count - 1), (places - before).astype(np.float32)


def _between(values: FloatArray, before: Indices, behind: Indices, share: FloatArray) -> FloatArray:
    """Interpolate linearly between rows ``before`` and ``behind`` of an array, with weight ``share`` for the latter."""
    first = values[before]
    return first + (values[behind] - first) * share
