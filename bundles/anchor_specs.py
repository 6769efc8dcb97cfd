"""Specs for decoding the outputs of torchvision's detectors, whose anchors are tensors of the bundle."""

from __future__ import annotations

from typing import Literal

from .detection_specs import DetectionDecode

__all__ = ["FasterRcnnDecode", "FcosDecode", "SsdDecode"]


class SsdDecode(DetectionDecode):
    """Spec for the outputs of one-stage detectors with fixed anchors: SSD, SSDLite, RetinaNet.

    ``logits [N, A, classes (+1)]``, and ``boxes [N, A, 4]`` as (dx, dy, dw, dh) relative to the anchors.
    """

    kind: Literal["ssd"] = "ssd"
    anchors: str
    """Id of the tensor with a detector's anchors, ``[A, 4]`` float32: x1 y1 x2 y2 in input pixels."""
    activation: Literal["softmax", "sigmoid"]
    """Function that turns a detector's logits into scores."""
    background: bool
    """Whether class 0 of a detector's logits is the background, which is never reported."""
    box_weights: tuple[float, float, float, float]
    """Divisors of a detector's box deltas (dx, dy, dw, dh)."""
    levels: tuple[int, ...] = ()
    """Number of a detector's anchors per feature level; empty if all anchors count as one level."""
    topk: int = 400
    """Maximum number of a detector's candidate boxes per feature level, best first, for non-maximum suppression."""
    per_class: bool = True
    """Whether the limit ``topk`` on candidate boxes applies to each class of a feature level, not to the level as a
    whole."""


class FasterRcnnDecode(DetectionDecode):
    """Spec for the outputs of two-stage detectors with a feature pyramid (torchvision's Faster R-CNN).

    Stage ``main`` gives for level i ``objectness_i [N, A, H, W]`` and ``deltas_i [N, 4A, H, W]`` (dx, dy, dw, dh, not
    divided), and ``features_i [N, C, H, W]`` for the levels in ``roi_levels``.
    Stage ``roi`` takes ``features [1, C, H, W]`` and ``rois [K, 4]`` in pixels of these features, and gives
    ``pooled [K, C, 7, 7]`` for one level. Boxes are scaled outside, so that all levels run one program.
    Stage ``head`` takes ``pooled`` and gives ``logits [K, classes + 1]``, background first, and
    ``boxes [K, (classes + 1) * 4]``.

    Mask R-CNN and Keypoint R-CNN have two more stages, which run on the final boxes. ``mask_roi`` or ``keypoint_roi``
    is as ``roi``, with ``pooled [K, C, 14, 14]``. Stage ``mask`` takes ``pooled`` and gives
    ``masks [K, classes + 1, 28, 28]``, background first; stage ``keypoint`` takes ``pooled`` and gives
    ``heatmaps [K, keypoints, 56, 56]``; both before the sigmoid.
    """

    kind: Literal["faster-rcnn"] = "faster-rcnn"
    anchors: tuple[str, ...]
    """Ids of the tensors with a detector's anchors, one per feature level, ``[H * W * A, 4]`` float32: x1 y1 x2 y2 in
    input pixels."""
    roi_levels: tuple[int, ...]
    """Feature levels of a two-stage detector from which RoIAlign takes features."""
    roi_scales: tuple[float, ...]
    """Feature pixels per input pixel, one number per feature level from which RoIAlign takes features: powers of
    two."""
    canonical_scale: int = 224
    """Side in input pixels of a box for which RoIAlign takes features from the feature level ``canonical_level``."""
    canonical_level: int = 4
    """Feature level from which RoIAlign takes features for boxes whose sides are ``canonical_scale``: k0 of Lin et al.,
    "Feature Pyramid Networks", equation 1."""
    pre_nms_topk: int = 1000
    """Maximum number of region proposals per feature level before non-maximum suppression."""
    post_nms_topk: int = 1000
    """Maximum number of region proposals after non-maximum suppression: per feature level, then per image."""
    rpn_score_threshold: float = 0.0
    rpn_nms_threshold: float = 0.7
    min_size: float = 1e-3
    """Minimum width and height in input pixels of a region proposal."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Divisors of the box deltas (dx, dy, dw, dh) that a two-stage detector's stage ``head`` gives."""
    masks: bool = False
    """Whether a two-stage detector has the stages ``mask_roi`` and ``mask``, which give the mask of each box (Mask
    R-CNN)."""
    keypoints: int = 0
    """Number of keypoints that the stages ``keypoint_roi`` and ``keypoint`` give for each box (Keypoint R-CNN); 0 for
    none."""


class FcosDecode(DetectionDecode):
    """Spec for torchvision's FCOS: a score is the square root of sigmoid(logit) * sigmoid(centerness).

    ``logits [N, A, classes]``, ``boxes [N, A, 4]``: distances to left, top, right and bottom from the centre of the
    anchor, in sides of the anchor; ``centerness [N, A, 1]``.
    """

    kind: Literal["fcos"] = "fcos"
    logits: str = "logits"
    boxes: str = "boxes"
    centerness: str = "centerness"
    anchors: str
    """Id of the tensor with a detector's anchors, ``[A, 4]`` float32: x1 y1 x2 y2 in input pixels."""
    levels: tuple[int, ...] = ()
    """Number of a detector's anchors per feature level; empty if all anchors count as one level."""
    score_threshold: float = 0.2
    nms_threshold: float = 0.6
    topk: int = 1000
    """Maximum number of a detector's candidate boxes per feature level, best first, for non-maximum suppression."""
