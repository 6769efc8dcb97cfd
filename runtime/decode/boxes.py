"""Boxes: decoding of deltas, clipping, non-maximum suppression. All boxes are ``[K, 4]`` float32, x1 y1 x2 y2.

Results are those of torchvision's BoxCoder, clip_boxes_to_image, remove_small_boxes and batched_nms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import CenterFaceDecode, FasterRcnnDecode, SsdDecode, YoloDecode
from ...frames.preprocess import Geometry
from .activations import label
from .decoder import FloatArray
from .results import Detection

__all__ = ["best_of_each", "decode_deltas", "detections", "highest", "nms"]

Indices = NDArray[np.intp]
"""Indices into an array, or class numbers, ``[K]``."""

# Any, because OpenCV's type stubs ask for lists of Python numbers, while its functions take arrays.
_dnn: Any = cv2.dnn

_MAX_LOG_RATIO = math.log(1000 / 16)
"""Bound of dw and dh, as in torchvision: an anchor grows by a factor of 62.5 at most."""
_MIN_SIDE = 1e-2
"""Least side of a box in pixels; a box that is clipped to less lies outside the frame."""
_BATCHED_NMS = 512
"""Boxes up to which one call for all classes is faster than one call for each class."""


def decode_deltas(deltas: FloatArray, anchors: FloatArray, weights: Sequence[float]) -> FloatArray:
    """Return the boxes ``[K, 4]`` of deltas (Girshick et al., "Rich feature hierarchies", appendix C).

    Args:
        deltas: ``[K, 4]``, (dx, dy, dw, dh) relative to the anchors.
        anchors: ``[K, 4]``.
        weights: divisors of (dx, dy, dw, dh).
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    deltas = np.divide(deltas, weights, dtype=np.float32)
    centers = deltas[:, :2] * sizes + (anchors[:, :2] + 0.5 * sizes)
    half = np.exp(np.minimum(deltas[:, 2:], np.float32(_MAX_LOG_RATIO))) * sizes * np.float32(0.5)
    boxes: FloatArray = np.concatenate([centers - half, centers + half], axis=1)
    return boxes


def clip(boxes: FloatArray, size: tuple[int, int], min_side: float = _MIN_SIDE) -> Indices:
    """Clip ``boxes`` in place to ``size`` (height, width); return the indices of boxes with sides >= ``min_side``."""
    np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32), out=boxes)
    return np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(axis=1))


def highest(scores: FloatArray, count: int) -> Indices:
    """Return the indices of the ``count`` highest of ``scores [K]``, in no particular order."""
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
    """Apply greedy non-maximum suppression within each class.

    Args:
        boxes: ``[K, 4]``, each with an area.
        scores: ``[K]``.
        classes: ``[K]``, not negative.
        threshold: intersection over union above which the box with the lower score is dropped.
        limit: the most boxes to keep.

    Returns:
        Indices of the kept boxes, best first.
    """
    if len(boxes) == 0:
        return np.empty(0, np.intp)
    corners = boxes.copy()
    corners[:, 2:] -= corners[:, :2]
    # OpenCV wants a score threshold, 0 here: the query's threshold was applied before.
    if len(boxes) <= _BATCHED_NMS:
        kept = np.asarray(_dnn.NMSBoxesBatched(corners, scores, classes, 0.0, threshold), np.intp)
        return kept[:limit]
    parts = []
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        parts.append(members[np.asarray(_dnn.NMSBoxes(corners[members], scores[members], 0.0, threshold), np.intp)])
    kept = np.concatenate(parts)
    return kept[np.argsort(-scores[kept], kind="stable")[:limit]]


def detections(
    boxes: FloatArray,
    scores: FloatArray,
    classes: Indices,
    spec: SsdDecode | FasterRcnnDecode | YoloDecode | CenterFaceDecode,
    geometry: Geometry,
    labels: Sequence[str] | None,
) -> tuple[Detection, ...]:
    """Clip boxes to the frame, suppress overlapping ones, and map the rest to source pixels.

    Boxes that lie outside the frame are left out; torchvision's one-stage detectors report them with an area of zero.

    Args:
        boxes: ``[K, 4]`` in input pixels; clipped in place.
        scores: ``[K]``, all above the threshold.
        classes: ``[K]``, the background not counted.
        spec: threshold of the suppression, and the most detections to return.
        geometry: position of the frame in the input.
        labels: names of classes; numbers are used if None.
    """
    inside = clip(boxes, geometry.valid)
    boxes, scores, classes = boxes[inside], scores[inside], classes[inside]
    kept = nms(boxes, scores, classes, spec.nms_threshold, spec.max_detections)
    source = geometry.to_source(boxes[kept]).tolist()
    return tuple(
        Detection((x1, y1, x2, y2), score, label(labels, index))
        for (x1, y1, x2, y2), score, index in zip(source, scores[kept].tolist(), classes[kept].tolist(), strict=True)
    )
