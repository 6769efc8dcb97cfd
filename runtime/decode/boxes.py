"""Boxes: decoding of deltas, clipping, non-maximum suppression. All boxes are ``[K, 4]`` float32, x1 y1 x2 y2.

The semantics are those of torchvision's BoxCoder, clip_boxes_to_image, remove_small_boxes and batched_nms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...bundles.manifest import CenterFaceDecode, FasterRcnnDecode, SsdDecode, YoloDecode
from ...frames.preprocess import Geometry
from . import FloatArray
from .activations import label
from .results import Detection

__all__ = ["best_of_each", "decode_deltas", "detections", "highest", "nms"]

Indices = NDArray[np.intp]

_dnn: Any = cv2.dnn
# Its stubs ask for lists of Python numbers, which arrays need not become.

_MAX_LOG_RATIO = math.log(1000 / 16)
"""Bound of dw and dh: an anchor grows by 62.5 at most, whatever a network says."""
_MIN_SIDE = 1e-2
"""Pixels. Boxes clipped to less lie outside the frame."""
_BATCHED_NMS = 512
"""Up to here one call that compares boxes of all classes beats a call a class."""


def decode_deltas(deltas: FloatArray, anchors: FloatArray, weights: Sequence[float]) -> FloatArray:
    """Boxes from deltas relative to anchors (Girshick et al., "Rich feature hierarchies", appendix C).

    Args:
        deltas: ``[K, 4]``, (dx, dy, dw, dh).
        anchors: ``[K, 4]``.
        weights: the divisors of (dx, dy, dw, dh).
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    deltas = np.divide(deltas, weights, dtype=np.float32)
    centers = deltas[:, :2] * sizes + (anchors[:, :2] + 0.5 * sizes)
    half = np.exp(np.minimum(deltas[:, 2:], np.float32(_MAX_LOG_RATIO))) * sizes * np.float32(0.5)
    boxes: FloatArray = np.concatenate([centers - half, centers + half], axis=1)
    return boxes


def clip(boxes: FloatArray, size: tuple[int, int], min_side: float = _MIN_SIDE) -> Indices:
    """Clip ``boxes`` in place to ``size`` (height, width); indices of those that keep ``min_side`` pixels."""
    np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32), out=boxes)
    return np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(axis=1))


def highest(scores: FloatArray, count: int) -> Indices:
    """Indices of the ``count`` highest of ``scores [K]``, in no order."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.argpartition(scores, len(scores) - count)[len(scores) - count :]


def best_of_each(scores: FloatArray, groups: Indices, count: int) -> Indices:
    """Indices of the ``count`` highest ``scores [K]`` of each group in ``groups [K]``."""
    if len(scores) <= count:
        return np.arange(len(scores))
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - first < count]


def nms(boxes: FloatArray, scores: FloatArray, classes: Indices, threshold: float, limit: int) -> Indices:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: ``[K, 4]``, each with an area.
        scores: ``[K]``.
        classes: ``[K]``, not negative.
        threshold: of two boxes that overlap by more (intersection over union), the lower one goes.
        limit: boxes to keep.

    Returns:
        Indices of the kept boxes, best first.
    """
    if len(boxes) == 0:
        return np.empty(0, np.intp)
    corners = boxes.copy()
    corners[:, 2:] -= corners[:, :2]
    # OpenCV asks for a score threshold of its own; ours was applied before.
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
    """Clip to the frame, suppress, and map to source pixels: what is common to all detectors.

    Boxes that lie outside the frame are left out; torchvision's one-stage detectors report them without area.

    Args:
        boxes: ``[K, 4]`` in input pixels; clipped in place.
        scores: ``[K]``, all above the threshold.
        classes: ``[K]``, the background not counted.
    """
    inside = clip(boxes, geometry.valid)
    boxes, scores, classes = boxes[inside], scores[inside], classes[inside]
    kept = nms(boxes, scores, classes, spec.nms_threshold, spec.max_detections)
    source = geometry.to_source(boxes[kept]).tolist()
    return tuple(
        Detection((x1, y1, x2, y2), score, label(labels, index))
        for (x1, y1, x2, y2), score, index in zip(source, scores[kept].tolist(), classes[kept].tolist(), strict=True)
    )
