"""Last steps of Mask R-CNN and Keypoint R-CNN: masks and keypoints from a small map per box.

Results are those of torchvision's ``paste_masks_in_image`` and ``heatmaps_to_keypoints``.
"""

from __future__ import annotations

import cv2
import numpy as np

from ...frames.preprocess import Geometry
from .activations import sigmoid
from .decoder import FloatArray
from .results import Mask

__all__ = ["heatmap_keypoints", "pasted_masks"]


def pasted_masks(logits: FloatArray, boxes: FloatArray, geometry: Geometry) -> tuple[Mask, ...]:
    """Enlarge Mask R-CNN's small map of each box to a mask of the frame: the pixels with a probability above 0.5.

    Args:
        logits: ``[K, h, w]``, before the sigmoid; each map covers its box.
        boxes: boxes of the objects, ``[K, 4]`` in input pixels.
        geometry: position of the frame in the input.
    """
    return tuple(
        _pasted(probabilities, box, geometry.source)
        for probabilities, box in zip(sigmoid(logits), geometry.to_source(boxes), strict=True)
    )


def _pasted(probabilities: FloatArray, box: FloatArray, size: tuple[int, int]) -> Mask:
    # A frame of zeros, so that the mask fades out at the edges of the box.
    padded = np.pad(probabilities, 1)
    growth = np.array(padded.shape[::-1], np.float32) / np.array(probabilities.shape[::-1], np.float32)
    center, half = (box[2:] + box[:2]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5) * growth
    left, top = np.trunc(center - half).astype(int).tolist()
    right, bottom = np.trunc(center + half).astype(int).tolist()
    scaled = cv2.resize(padded, (right - left + 1, bottom - top + 1), interpolation=cv2.INTER_LINEAR)
    row, column = max(top, 0), max(left, 0)
    inside = scaled[row - top : size[0] - top, column - left : size[1] - left] > 0.5
    return Mask.of(inside, size, (row, column))


def heatmap_keypoints(heatmaps: FloatArray, boxes: FloatArray) -> FloatArray:
    """Return Keypoint R-CNN's keypoints of each box: the points where the enlarged heatmaps are highest.

    Args:
        heatmaps: ``[K, P, h, w]`` logits of P keypoints; each map covers its box.
        boxes: boxes of the objects, ``[K, 4]`` in input pixels.

    Returns:
        ``[K, P, 3]``: x and y in input pixels, and a score, the sigmoid of the highest logit.
    """
    found = np.zeros((len(boxes), heatmaps.shape[1], 3), np.float32)
    for row, (maps, box) in enumerate(zip(heatmaps, boxes, strict=True)):
        sides = np.maximum(box[2:] - box[:2], 1)
        width, height = (max(int(side), 1) for side in np.ceil(sides))
        scaled = np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in maps])
        flat = scaled.reshape(len(maps), -1)
        best = flat.argmax(axis=1)
        cells = np.stack([best % width, best // width], axis=1).astype(np.float32)
        found[row, :, :2] = (cells + np.float32(0.5)) * (sides / np.array([width, height], np.float32)) + box[:2]
        found[row, :, 2] = sigmoid(flat[np.arange(len(maps)), best])
    return found
