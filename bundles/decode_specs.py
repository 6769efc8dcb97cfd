"""Meaning of a model's outputs: one value per kind of head, from which :mod:`gemel.runtime.decode` makes a decoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .value import Value

__all__ = [
    "CenterFaceDecode",
    "ClassificationDecode",
    "DecodeSpec",
    "EmbeddingDecode",
    "FasterRcnnDecode",
    "SsdDecode",
    "YoloDecode",
    "YoloHead",
]


class ClassificationDecode(Value):
    """Class scores ``[N, classes]`` in the first output: before a softmax, or probabilities."""

    kind: Literal["classification"] = "classification"
    activation: Literal["softmax", "none"] = "softmax"
    """Function that turns the output into probabilities; ``none`` if the output has probabilities."""
    classes: int
    top_k: int = 5
    """Most classes that one result names, best first."""


class EmbeddingDecode(Value):
    """One vector per image in the first output: ``[N, D]``, or ``[N, C, H, W]``, which is averaged over H and W."""

    kind: Literal["embedding"] = "embedding"
    normalize: bool = True
    """Whether to divide by the Euclidean norm, so that a dot product is the cosine similarity."""


class _Detection(Value):
    """Fields that all detectors share."""

    classes: int
    """Number of classes, the background not counted."""
    score_threshold: float = 0.05
    """Score below which a candidate is dropped before non-maximum suppression."""
    nms_threshold: float = 0.5
    """Overlap (IoU) above which non-maximum suppression drops the lower score."""
    max_detections: int = 100
    """Most detections that one image may have."""
    topk: int = 1000
    """Most candidates per class, best first, that non-maximum suppression sees: bounds the time of a bad model."""


class SsdDecode(_Detection):
    """Outputs of one-stage detectors with fixed anchors: SSD, SSDLite, RetinaNet.

    ``logits [N, A, classes (+1)]``, and ``boxes [N, A, 4]`` as (dx, dy, dw, dh) relative to the anchors.
    """

    kind: Literal["ssd"] = "ssd"
    anchors: str
    """Tensor ``[A, 4]`` float32: x1 y1 x2 y2 in input pixels."""
    activation: Literal["softmax", "sigmoid"]
    """Function that turns logits into scores."""
    background: bool
    """Whether class 0 of the logits is the background, which is never reported."""
    box_weights: tuple[float, float, float, float]
    """Divisors of (dx, dy, dw, dh)."""
    levels: tuple[int, ...] = ()
    """Number of anchors per feature level; empty if all anchors count as one level."""
    topk: int = 400
    """Most candidates per level that non-maximum suppression sees, best first."""
    per_class: bool = True
    """Whether ``topk`` applies to each class of a level, not to the level as a whole."""


class FasterRcnnDecode(_Detection):
    """Outputs of two-stage detectors with a feature pyramid (torchvision's Faster R-CNN).

    Stage ``main`` gives for level i ``objectness_i [N, A, H, W]`` and ``deltas_i [N, 4A, H, W]`` (dx, dy, dw, dh, not
    divided), and ``features_i [N, C, H, W]`` for the levels in ``roi_levels``.
    Stage ``roi`` takes ``features [1, C, H, W]`` and ``rois [K, 4]`` in pixels of these features, and gives
    ``pooled [K, C, 7, 7]`` for one level. Boxes are scaled outside, so that all levels run one program.
    Stage ``head`` takes ``pooled`` and gives ``logits [K, classes + 1]``, background first, and
    ``boxes [K, (classes + 1) * 4]``.
    """

    kind: Literal["faster-rcnn"] = "faster-rcnn"
    anchors: tuple[str, ...]
    """One tensor per level, ``[H * W * A, 4]`` float32: x1 y1 x2 y2 in input pixels."""
    roi_levels: tuple[int, ...]
    """Levels from which RoIAlign takes features."""
    roi_scales: tuple[float, ...]
    """Feature pixels per input pixel, one number per level in ``roi_levels``: powers of two."""
    canonical_scale: int = 224
    """Side in input pixels of a box that belongs to ``canonical_level``."""
    canonical_level: int = 4
    """Level k0 of Lin et al., "Feature Pyramid Networks", equation 1."""
    pre_nms_topk: int = 1000
    """Most proposals per level before non-maximum suppression."""
    post_nms_topk: int = 1000
    """Most proposals after non-maximum suppression: per level, then per image."""
    rpn_score_threshold: float = 0.0
    rpn_nms_threshold: float = 0.7
    min_size: float = 1e-3
    """Side in input pixels below which a proposal is dropped."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Divisors of (dx, dy, dw, dh) of stage ``head``."""


class YoloHead(Value):
    """One output of a YOLOv3-style detector."""

    output: str
    stride: int
    """Input pixels per cell of the output."""
    anchors: tuple[tuple[float, float], ...]
    """Width and height in input pixels."""


class YoloDecode(_Detection):
    """Outputs of YOLOv3-style heads: each ``[N, A * (5 + classes), H, W]``, all values before the sigmoid."""

    kind: Literal["yolo"] = "yolo"
    heads: tuple[YoloHead, ...]


class CenterFaceDecode(_Detection):
    """Outputs of CenterFace: heatmap ``[N, 1, H, W]``; scale and offset ``[N, 2, H, W]``, the vertical value first."""

    kind: Literal["centerface"] = "centerface"
    heatmap: str
    scale: str
    offset: str
    stride: int = 4
    """Input pixels per cell of the outputs."""


DecodeSpec = Annotated[
    ClassificationDecode | EmbeddingDecode | SsdDecode | FasterRcnnDecode | YoloDecode | CenterFaceDecode,
    Field(discriminator="kind"),
]
"""Meaning of a model's outputs, told apart by ``kind``."""
