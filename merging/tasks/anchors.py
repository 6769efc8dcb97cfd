"""Loss for training anchor-based detectors on labelled boxes.

From Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2. Heads with a sigmoid use the focal loss of
Lin et al., "Focal Loss for Dense Object Detection" (2017), section 4.1, instead of hard negative mining.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, sigmoid_focal_loss

from ...frames.preprocess import Geometry
from ...workload.data import Boxes
from .heads import Heads

__all__ = ["anchor_loss", "match_anchors", "to_input"]

_MATCH_OVERLAP = 0.5
"""Minimum intersection over union of an anchor and an object's box for which the anchor is matched with the object."""
_IGNORE_OVERLAP = 0.4
"""Minimum intersection over union of an unmatched anchor and a box for which the anchor counts as neither object nor
background (sigmoid heads)."""
_NEGATIVES = 3
"""Number of background anchors, those with the largest loss, that count per anchor with an object (softmax heads)."""


def to_input(objects: Boxes, place: Geometry, mirrored: bool) -> Tensor:
    """Convert boxes from source pixels to pixels of the model's input, mirrored as :meth:`.Images.batch` mirrors.

    Args:
        objects: boxes in pixels of the source image.
        place: position of the source image in the model's input.
        mirrored: whether the image is mirrored left to right.

    Returns:
        ``[K, 4]`` float32, x1 y1 x2 y2.
    """
    y, x = (valid / source for valid, source in zip(place.valid, place.source, strict=True))
    left, top, right, _ = place.area
    boxes = objects.boxes * torch.tensor([x, y, x, y]) + torch.tensor([left, top] * 2)
    if mirrored:
        boxes[:, [0, 2]] = left + right - boxes[:, [2, 0]]
    return boxes


def anchor_loss(
    heads: Heads, anchors: Tensor, weights: Sequence[float], truth: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return class loss plus box loss of a batch, divided by the number of anchors that are matched with an object.

    Args:
        heads: the model's outputs for the batch.
        anchors: ``[A, 4]``, x1 y1 x2 y2 in input pixels.
        weights: factors that encoded boxes (dx, dy, dw, dh) are multiplied by.
        truth: for each image, its boxes ``[K, 4]`` in input pixels and their classes ``[K]``.
    """
    total = heads.scores.new_zeros(())
    count = 0
    for scores, deltas, (boxes, classes) in zip(heads.scores, heads.boxes, truth, strict=True):
        overlap, match = match_anchors(boxes, anchors)
        positive = overlap >= _MATCH_OVERLAP
        count += int(positive.sum())
        target = _encode(boxes[match[positive]], anchors[positive], weights)
        total = total + F.smooth_l1_loss(deltas[positive], target, reduction="sum")
        labels = classes[match[positive]]
        total = total + (_softmax if heads.activation == "softmax" else _sigmoid)(scores, positive, overlap, labels)
    return total / max(count, 1)


def match_anchors(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Match every anchor with the box that the anchor overlaps most, and every box with its best anchor.

    The best anchor of a box counts as overlapping the box fully (1).

    Returns:
        For each anchor, its intersection over union with the matched box, ``[A]``, and the box's index, ``[A]``.
    """
    if not len(boxes):
        return anchors.new_zeros(len(anchors)), anchors.new_zeros(len(anchors), dtype=torch.int64)
    overlaps = box_iou(boxes, anchors)
    overlap, match = overlaps.max(0)
    best = overlaps.argmax(1)
    overlap[best], match[best] = 1.0, torch.arange(len(boxes), device=best.device)
    return overlap, match


def _encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Encode boxes relative to anchors; the inverse of :func:`gemel.runtime.decode.boxes.decode_deltas`.

    Args:
        boxes: ``[K, 4]``, x1 y1 x2 y2.
        anchors: ``[K, 4]``, x1 y1 x2 y2.
        weights: factors that (dx, dy, dw, dh) are multiplied by.
    """
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    centre = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / anchor_size
    # A side of 0 has no logarithm.
    return torch.cat([centre, (size.clamp(min=1e-3) / anchor_size).log()], 1) * boxes.new_tensor(weights)


def _softmax(scores: Tensor, positive: Tensor, overlap: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the anchors with an object and of the background anchors with the largest loss.

    Args:
        scores: class scores of one image, ``[A, classes + 1]``, the background first.
        positive: ``[A]`` bool, true for anchors that are matched with an object.
        overlap: ``[A]``; unused, but :func:`_sigmoid` takes the same arguments.
        labels: class number of each matched anchor, with the background not counted as a class.
    """
    target = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    target[positive] = labels + 1
    losses = F.cross_entropy(scores, target, reduction="none")
    most = min(_NEGATIVES * max(len(labels), 1), int((~positive).sum()))
    return losses[positive].sum() + losses[~positive].topk(most).values.sum()


def _sigmoid(scores: Tensor, positive: Tensor, overlap: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss of all anchors that clearly are object or background.

    Args:
        scores: class scores of one image, ``[A, classes]``.
        positive: ``[A]`` bool, true for anchors that are matched with an object.
        overlap: largest intersection over union of each anchor with a box, ``[A]``.
        labels: class number of each matched anchor.
    """
    target = torch.zeros_like(scores)
    target[positive.nonzero()[:, 0], labels] = 1.0
    clear = positive | (overlap < _IGNORE_OVERLAP)
    loss: Tensor = sigmoid_focal_loss(scores[clear], target[clear], reduction="sum")
    return loss
