"""Training detectors with anchors on boxes.

Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2; for heads with a sigmoid the focal loss of Lin
et al., "Focal Loss for Dense Object Detection" (2017), section 4.1.
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

__all__ = ["anchor_loss", "to_input"]

_MATCH = 0.5
_DOUBT = 0.4
"""Anchors that overlap by this much and less than a match are neither object nor background (sigmoid heads)."""
_NEGATIVES = 3
"""Background anchors that count, for each one with an object (softmax heads): the most mistaken."""


def to_input(objects: Boxes, place: Geometry, mirrored: bool) -> Tensor:
    """Boxes ``[K, 4]`` in pixels of the model's input, mirrored as :meth:`Images.batch` mirrors."""
    y, x = (valid / source for valid, source in zip(place.valid, place.source, strict=True))
    boxes = objects.boxes * torch.tensor([x, y, x, y])
    if mirrored:
        boxes[:, [0, 2]] = place.valid[1] - boxes[:, [2, 0]]
    return boxes


def anchor_loss(
    heads: Heads, anchors: Tensor, weights: Sequence[float], truth: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Class and box loss of a batch, over the number of anchors that stand for an object.

    Args:
        heads: of the batch.
        anchors: ``[A, 4]`` in input pixels.
        weights: what encoded (dx, dy, dw, dh) are multiplied by.
        truth: boxes ``[K, 4]`` in input pixels and classes ``[K]`` of each image.
    """
    total = heads.scores.new_zeros(())
    count = 0
    for scores, deltas, (boxes, classes) in zip(heads.scores, heads.boxes, truth, strict=True):
        overlap, match = _match(boxes, anchors)
        positive = overlap >= _MATCH
        count += int(positive.sum())
        wanted = _encode(boxes[match[positive]], anchors[positive], weights)
        total = total + F.smooth_l1_loss(deltas[positive], wanted, reduction="sum")
        numbers = classes[match[positive]]
        total = total + (_softmax if heads.activation == "softmax" else _sigmoid)(scores, positive, overlap, numbers)
    return total / max(count, 1)


def _match(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap with, and number of, the box that each anchor stands for; every box gets the anchor that fits it best."""
    if not len(boxes):
        return anchors.new_zeros(len(anchors)), anchors.new_zeros(len(anchors), dtype=torch.int64)
    overlaps = box_iou(boxes, anchors)
    overlap, match = overlaps.max(0)
    best = overlaps.argmax(1)
    overlap[best], match[best] = 1.0, torch.arange(len(boxes), device=best.device)
    return overlap, match


def _encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """The inverse of :func:`gemel.runtime.decode.boxes.decode_deltas`."""
    size, own = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    centre = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / own
    # A box without area has no logarithm.
    return torch.cat([centre, (size.clamp(min=1e-3) / own).log()], 1) * boxes.new_tensor(weights)


def _softmax(scores: Tensor, positive: Tensor, overlap: Tensor, numbers: Tensor) -> Tensor:
    wanted = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    wanted[positive] = numbers + 1
    losses = F.cross_entropy(scores, wanted, reduction="none")
    most = min(_NEGATIVES * max(len(numbers), 1), int((~positive).sum()))
    return losses[positive].sum() + losses[~positive].topk(most).values.sum()


def _sigmoid(scores: Tensor, positive: Tensor, overlap: Tensor, numbers: Tensor) -> Tensor:
    wanted = torch.zeros_like(scores)
    wanted[positive.nonzero()[:, 0], numbers] = 1.0
    clear = positive | (overlap < _DOUBT)
    loss: Tensor = sigmoid_focal_loss(scores[clear], wanted[clear], reduction="sum")
    return loss
