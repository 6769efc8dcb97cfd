"""Specs for decoding a detector's outputs: one class per layout of outputs.

N is the batch, C the number of classes, A the number of candidate boxes that a detector scores, K a number of
detections.
"""

from __future__ import annotations

from typing import Literal

from .value import Value

__all__ = [
    "CenterFaceDecode",
    "DetectionDecode",
    "DetrDecode",
    "EndToEndDecode",
    "FaceGridDecode",
    "GflDecode",
    "GridDecode",
    "TripletDecode",
    "YoloDecode",
    "YoloHead",
    "YoloxDecode",
]


class DetectionDecode(Value):
    """Base of the specs for decoding detectors: classes, thresholds and limits, which all detectors have."""

    classes: int
    """Number of the detector's classes, the background not counted."""
    first_class: int = 0
    """Number that the detector's own library gives to the first class: 1 where number 0 is the background."""
    score_threshold: float = 0.05
    """Score below which a candidate box is dropped before non-maximum suppression."""
    nms_threshold: float = 0.5
    """Overlap (IoU) of two boxes above which non-maximum suppression drops the one with the lower score."""
    max_detections: int = 100
    """Maximum number of detections to report in one image."""
    topk: int = 1000
    """Maximum number of candidate boxes per class, best first, for non-maximum suppression, so that a bad model cannot
    take long."""


class _Parts(DetectionDecode):
    """Base of the specs for detectors whose output rows may end with mask coefficients or with keypoints."""

    masks: int = 0
    """Number of mask coefficients at the end of each row of a detector's output; 0 for a detector without masks."""
    prototypes: str | None = None
    """Name of a detector's output with mask prototypes ``[N, masks, h, w]``: a mask is sigmoid(coefficients @
    prototypes)."""
    keypoints: int = 0
    """Number of keypoints (in input pixels) at the end of each row of a detector's output; 0 for a detector without
    keypoints."""
    keypoint_values: Literal[2, 3] = 3
    """Number of values that a detector's output has per keypoint: x, y and, if 3, a score from 0 to 1."""


class GridDecode(_Parts):
    """Spec for YOLOv5, YOLOv7, YOLOv8, YOLO11 and Ultralytics' RT-DETR: a row of box and class scores per candidate.

    ``output [N, A, 4 (+ 1) + C (+ masks) (+ keypoints * keypoint_values)]``: the box, the objectness if there is one,
    one score per class, then the mask or the keypoints. A candidate is reported under its best class only, as
    Ultralytics does, unless ``every_class`` is set. Boxes are clipped to the frame after non-maximum suppression.
    """

    kind: Literal["grid"] = "grid"
    output: str
    transposed: bool
    """Whether a YOLO detector's output is ``[N, values, A]`` and not ``[N, A, values]``, as in YOLOv8 and YOLO11."""
    objectness: bool
    """Whether the rows of a YOLO detector's output have an objectness after the box, by which class scores are
    multiplied."""
    boxes: str | None = None
    """Name of a detector's output ``[N, A, 4]`` with the boxes; None if the rows of the main output begin with the
    boxes."""
    every_class: bool = False
    """Whether a candidate box is reported under every class above the threshold, and not under its best class only."""
    box: Literal["cxcywh", "xyxy"] = "cxcywh"
    """Form of the boxes in a detector's output: centre, width and height, or the corners."""
    normalized: bool = False
    """Whether the boxes in a detector's output are fractions of the input's size, not pixels."""
    nms: bool = True
    """Whether a detector's boxes need non-maximum suppression; those of Ultralytics' RT-DETR need none."""
    activation: Literal["none", "sigmoid"] = "none"
    """Function that turns the objectness and the class values of a detector's output into scores."""
    score_threshold: float = 0.25
    nms_threshold: float = 0.7
    max_detections: int = 300
    topk: int = 30000
    """Maximum number of a detector's candidate boxes of all classes together, best first, for non-maximum
    suppression."""


class EndToEndDecode(_Parts):
    """Spec for an output of final detections, from a model that suppresses overlaps: YOLOv10, YOLO26, exports with NMS.

    ``xyxy-score-class``: ``output [N, K, 6 (+ masks) (+ keypoints * keypoint_values)]``: x1 y1 x2 y2, score, class.
    ``cxcywh-score-class``: the same with centre, width and height (RT-DETR of Ultralytics 8.4, normalized).
    ``batch-xyxy-class-score``: ``output [K, 7]``: image of the batch, x1 y1 x2 y2, class, score (YOLOv7's end2end).
    Rows of zeros are padding.
    """

    kind: Literal["end-to-end"] = "end-to-end"
    output: str
    columns: Literal["xyxy-score-class", "cxcywh-score-class", "batch-xyxy-class-score"] = "xyxy-score-class"
    normalized: bool = False
    """Whether the boxes in a detector's output are fractions of the input's size, not pixels."""
    score_threshold: float = 0.25
    max_detections: int = 300


class YoloxDecode(DetectionDecode):
    """Spec for the output of YOLOX: ``output [N, A, 5 + C]``, feature level after feature level.

    A row has the centre of a box relative to its cell and the logarithms of width and height, all in cells, then the
    objectness and one score per class, both after the sigmoid. A candidate is reported under its best class only.
    """

    kind: Literal["yolox"] = "yolox"
    output: str
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides of a detector: input pixels per cell of its output, one number per feature level."""
    score_threshold: float = 0.25
    nms_threshold: float = 0.45
    topk: int = 30000
    """Maximum number of a detector's candidate boxes of all classes together, best first, for non-maximum
    suppression."""


class DetrDecode(DetectionDecode):
    """Spec for the outputs of DETR and its descendants in Hugging Face's layout; overlaps need no suppression.

    ``logits [N, Q, C (+ 1)]`` of Q object queries, with the background last if the activation is a softmax;
    ``boxes [N, Q, 4]``: centre, width and height as fractions of the input's size. With a softmax an object query is
    reported under its best class; with a sigmoid the Q best pairs of object query and class are reported.
    """

    kind: Literal["detr"] = "detr"
    logits: str
    boxes: str
    activation: Literal["softmax", "sigmoid"]
    """Function that turns a detector's logits into scores."""
    score_threshold: float = 0.5
    max_detections: int = 300


class TripletDecode(DetectionDecode):
    """Spec for final detections in three outputs: official exports of RT-DETR and D-FINE, torchvision's own export.

    ``labels [N, K]`` with class numbers from ``first_class``, ``boxes [N, K, 4]`` x1 y1 x2 y2, ``scores [N, K]``. The
    batch axis may be missing.
    """

    kind: Literal["triplet"] = "triplet"
    labels: str
    boxes: str
    scores: str
    normalized: bool = False
    """Whether the boxes in a detector's output are fractions of the input's size, not pixels."""
    score_threshold: float = 0.25
    max_detections: int = 300


class GflDecode(DetectionDecode):
    """Spec for NanoDet and PicoDet: each distance from a point to a side of the box is a distribution over bins.

    ``scores``: one output per level, ``[N, h * w, C]`` or ``[N, C, h, w]``. ``distances``: the same with
    ``4 * (reg_max + 1)`` values: left, top, right, bottom. A distance is the mean of the bin numbers under their
    softmax, in cells. Without ``distances``, ``scores`` is one joint output ``[N, A, C + 4 * (reg_max + 1)]``, level
    after level. A candidate is reported under every class that scores above the threshold.
    """

    kind: Literal["gfl"] = "gfl"
    scores: tuple[str, ...]
    distances: tuple[str, ...] = ()
    strides: tuple[int, ...] = (8, 16, 32, 64)
    """Strides of a detector: input pixels per cell of its outputs, one number per feature level."""
    reg_max: int = 7
    """Number of the last bin of the distribution by which a detector gives a distance; bins are numbered from 0."""
    activation: Literal["none", "sigmoid"] = "none"
    """Function that turns the class values of a detector's outputs into scores."""
    cell_offset: float = 0.5
    """Position in its cell, in cells, of the point from which a detector measures the distances to the sides of a box:
    0.5, or 0 in NanoDet-Plus."""
    nms_threshold: float = 0.6


class FaceGridDecode(DetectionDecode):
    """Spec for the outputs of face detectors with landmarks: SCRFD, RetinaFace, YuNet.

    Every tuple of outputs has one name per level of ``strides``, or one name for an output with all levels. A batch
    axis may be missing. P is ``landmarks``.

    - ``scrfd``: ``scores [N, A, 1]``, ``boxes [N, A, 4]`` distances to left, top, right, bottom in cells from the
      cell's upper left corner, ``points [N, A, 2P]`` relative to the corner in cells; ``kinds`` rows per cell.
    - ``retinaface``: ``scores [N, A, 2]`` (background, face), ``boxes [N, A, 4]`` (dx, dy, dw, dh) and
      ``points [N, A, 2P]`` relative to priors: squares around the cell's centre with the sides of ``min_sizes``.
    - ``yunet``: ``scores`` and ``objectness [N, A, 1]``, whose geometric mean is the score, ``boxes [N, A, 4]``: centre
      relative to the cell's upper left corner and logarithms of width and height, and ``points [N, A, 2P]``, in cells.
    """

    kind: Literal["face-grid"] = "face-grid"
    style: Literal["scrfd", "retinaface", "yunet"]
    scores: tuple[str, ...]
    boxes: tuple[str, ...]
    points: tuple[str, ...] = ()
    """Names of a face detector's outputs with landmarks; empty for a detector without landmarks."""
    objectness: tuple[str, ...] = ()
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides of a face detector: input pixels per cell of its outputs, one number per feature level."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """Function that turns a face detector's outputs ``scores`` (and ``objectness``) into probabilities."""
    kinds: int = 2
    """Number of output rows per cell of a face detector of the style ``scrfd``."""
    min_sizes: tuple[tuple[float, ...], ...] = ((16, 32), (64, 128), (256, 512))
    """Sides in input pixels of a face detector's priors (square anchors), one tuple per feature level, for the style
    ``retinaface``."""
    variances: tuple[float, float] = (0.1, 0.2)
    """Factors of a face detector's box values (dx, dy) and (dw, dh), for the style ``retinaface``."""
    landmarks: int = 5
    """Number of landmarks that a face detector gives per face."""
    classes: int = 1
    score_threshold: float = 0.5
    nms_threshold: float = 0.4
    topk: int = 5000


class YoloHead(Value):
    """Output of a YOLOv3-style detector for one feature level, with its stride and anchors."""

    output: str
    stride: int
    """Stride of an output of a YOLOv3-style detector: input pixels per cell."""
    anchors: tuple[tuple[float, float], ...]
    """Width and height in input pixels of each anchor of an output of a YOLOv3-style detector."""


class YoloDecode(DetectionDecode):
    """Spec for the outputs of YOLOv3-style heads: each ``[N, A * (5 + classes), H, W]``, all before the sigmoid."""

    kind: Literal["yolo"] = "yolo"
    heads: tuple[YoloHead, ...]


class CenterFaceDecode(DetectionDecode):
    """Spec for CenterFace: heatmap ``[N, 1, H, W]``; scale and offset ``[N, 2, H, W]``, the vertical value first."""

    kind: Literal["centerface"] = "centerface"
    heatmap: str
    scale: str
    offset: str
    stride: int = 4
    """Stride of CenterFace's outputs: input pixels per cell."""
