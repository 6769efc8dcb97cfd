"""Boxes of detectors: decoding of deltas, clipping, non-maximum suppression. Boxes are ``[K, 4]`` float32, x1 y1 x2 y2.

Results are those of torchvision's BoxCoder, clip_boxes_to_image, remove_small_boxes and batched_nms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .decoder import FloatArray

__all__ = ["best_of_each", "clip", "corners", "decode_deltas", "highest", "nms", "with_area"]

Indices = NDArray[np.intp]
"""Array ``[K]`` of indices into another array, or of class numbers."""

# Any, because OpenCV's type stubs ask for lists of Python numbers, while its functions take arrays.
_dnn: Any = cv2.dnn

_MAX_LOG_RATIO = math.log(1000 / 16)
"""Maximum of the deltas dw and dh (logarithms of factors), as in torchvision: an anchor grows at most 62.5-fold."""
_MIN_SIDE = 1e-2
"""Minimum width and height of a box in pixels; a box that is clipped to less lies outside the frame."""
_BATCHED_NMS = 512
"""Maximum number of boxes for which one OpenCV call for all classes is faster than one call for each class."""
_LIMITED_NMS = 4096
"""Maximum number of boxes to give OpenCV's non-maximum suppression, whose time grows with the square of the number."""


def decode_deltas(deltas: FloatArray, anchors: FloatArray, weights: Sequence[float]) -> FloatArray:
    """Return the boxes ``[K, 4]`` that a detector's deltas describe relative to its anchors.

    Girshick et al., "Rich feature hierarchies", appendix C.

    Args:
        deltas: ``[K, 4]``, (dx, dy, dw, dh) relative to the anchors.
        anchors: ``[K, 4]``, x1 y1 x2 y2.
        weights: divisors of (dx, dy, dw, dh).
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    deltas = np.divide(deltas, weights, dtype=np.float32)
    centers = deltas[:, :2] * sizes + (anchors[:, :2] + 0.5 * sizes)
    half = np.exp(np.minimum(deltas[:, 2:], np.float32(_MAX_LOG_RATIO))) * sizes * np.float32(0.5)
    boxes: FloatArray = np.concatenate([centers - half, centers + half], axis=1)
    return boxes


def corners(boxes: FloatArray) -> FloatArray:
    """Convert boxes ``[K, 4]`` from centre, width and height to corners x1 y1 x2 y2."""
    half = boxes[:, 2:] * np.float32(0.5)
    turned: FloatArray = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return turned


def clip(boxes: FloatArray, area: tuple[int, int, int, int], min_side: float = _MIN_SIDE) -> Indices:
    """Clip boxes to an area in place, and return the indices of the boxes that still have a width and height.

    Args:
        boxes: ``[K, 4]``, x1 y1 x2 y2 in pixels.
        area: area to clip to, x1 y1 x2 y2.
        min_side: minimum width and height in pixels of a box whose index is returned.
    """
    edges = np.array(area, np.float32)
    np.clip(boxes, np.tile(edges[:2], 2), np.tile(edges[2:], 2), out=boxes)
    return with_area(boxes, min_side)


def with_area(boxes: FloatArray, min_side: float = _MIN_SIDE) -> Indices:
    """Return the indices of the boxes that are finite and at least ``min_side`` pixels wide and high."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.flatnonzero((sides >= min_side).all(axis=1) & np.isfinite(boxes).all(axis=1))


def highest(scores: FloatArray, count: int) -> Indices:
    """Return the indices of the ``count`` highest scores of ``scores [K]``, in no particular order."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.argpartition(scores, len(scores) - count)[len(scores) - count :]


def best_of_each(scores: FloatArray, groups: Indices, count: int) -> Indices:
    """Return the indices of the ``count`` highest ``scores [K]`` of each group in ``groups [K]``."""
    if len(scores) <= count:
        return np.arange(len(scores))
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - first < count]


def nms(boxes: FloatArray, scores: FloatArray, classes: Indices, threshold: float, limit: int) -> Indices:
    """Apply greedy non-maximum suppression to boxes within each class: drop boxes that overlap a better one.

    Args:
        boxes: ``[K, 4]``, each with an area.
        scores: score of each box, ``[K]``.
        classes: class number of each box, ``[K]``, not negative.
        threshold: intersection over union above which the box with the lower score is dropped.
        limit: maximum number of boxes to keep.

    Returns:
        Indices of the kept boxes, best first.
    """
    if len(boxes) == 0:
        return np.empty(0, np.intp)
    if len(boxes) > _LIMITED_NMS:
        return _limited_nms(boxes, scores, classes, threshold, limit)
    rectangles: NDArray[np.floating[Any]] = boxes.copy()
    rectangles[:, 2:] -= rectangles[:, :2]
    lowest = boxes[:, :2].min(axis=0)
    if (lowest < 0).any():
        # OpenCV shifts the boxes of each class by the greatest coordinate, so no coordinate may be negative. Double
        # precision, because one far box must not round away the positions of the others.
        rectangles = rectangles.astype(np.float64)
        rectangles[:, :2] -= np.minimum(lowest, 0)
    # OpenCV wants a score threshold, 0 here: the query's threshold was applied before.
    if len(boxes) <= _BATCHED_NMS:
        kept = np.asarray(_dnn.NMSBoxesBatched(rectangles, scores, classes, 0.0, threshold), np.intp)
        return kept[:limit]
    parts = []
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        found = _dnn.NMSBoxes(rectangles[members], scores[members], 0.0, threshold)
        parts.append(members[np.asarray(found, np.intp)])
    # Sorted, so that the first of equal scores goes first, whatever its class.
    kept = np.sort(np.concatenate(parts))
    return kept[np.argsort(-scores[kept], kind="stable")[:limit]]


def _limited_nms(boxes: FloatArray, scores: FloatArray, classes: Indices, threshold: float, limit: int) -> Indices:
    """Apply non-maximum suppression as :func:`nms` does, in a time that grows with ``limit`` times the number of boxes.

    OpenCV compares each box with all kept boxes and has no limit: for 30,000 boxes, up to 450 million pairs.
    """
    order = np.argsort(-scores, kind="stable")
    left, top, right, bottom = (np.ascontiguousarray(edge) for edge in boxes[order].T)
    kinds = classes[order]
    kept: list[int] = []
    # Areas of huge boxes overflow; the overlap is then NaN, which suppresses nothing.
    areas = (right - left) * (bottom - top)
    alive = np.ones(len(order), np.bool_)
    best = 0
    while alive[best] and len(kept) < limit:
        kept.append(best)
        rest = slice(best + 1, None)
        width = np.minimum(right[rest], right[best]) - np.maximum(left[rest], left[best])
        height = np.minimum(bottom[rest], bottom[best]) - np.maximum(top[rest], top[best])
        both = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = both / (areas[rest] + areas[best] - both)
        alive[rest] &= ~((overlap > threshold) & (kinds[rest] == kinds[best]))
        alive[best] = False
        best += int(alive[best:].argmax())
    return order[kept]
