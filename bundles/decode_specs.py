"""Specs for decoding a model's outputs: one class per kind of outputs.

:mod:`gemel.runtime.decode` makes a decoder of a spec. Specs for detectors are in :mod:`.detection_specs` and
:mod:`.anchor_specs`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .anchor_specs import FasterRcnnDecode, FcosDecode, SsdDecode
from .detection_specs import (
    CenterFaceDecode,
    DetectionDecode,
    DetrDecode,
    EndToEndDecode,
    FaceGridDecode,
    GflDecode,
    GridDecode,
    TripletDecode,
    YoloDecode,
    YoloHead,
    YoloxDecode,
)
from .value import Value

__all__ = [
    "CenterFaceDecode",
    "ClassificationDecode",
    "DecodeSpec",
    "DetectionDecode",
    "DetrDecode",
    "EmbeddingDecode",
    "EndToEndDecode",
    "FaceGridDecode",
    "FasterRcnnDecode",
    "FcosDecode",
    "GflDecode",
    "GridDecode",
    "OcrDecode",
    "RawDecode",
    "SegmentationDecode",
    "SsdDecode",
    "TripletDecode",
    "YoloDecode",
    "YoloHead",
    "YoloxDecode",
]


class ClassificationDecode(Value):
    """Spec for a classifier: class scores ``[N, classes]`` in the first output, or one class number per image."""

    kind: Literal["classification"] = "classification"
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Function that turns a classifier's output into probabilities; ``none`` if the output has probabilities."""
    classes: int
    """Number of scores in a classifier's output. One score, with the activation ``sigmoid`` or ``none``, is the score
    of "yes" of a binary classifier."""
    top_k: int = 5
    """Maximum number of classes that one result of a classifier lists, best first."""
    multi_label: bool = False
    """Whether a classifier may report several classes for an image: all above the threshold, by default above 0.5."""
    class_numbers: bool = False
    """Whether a classifier's output has class numbers (ArgMax), not scores; a class is then reported with score 1."""


class EmbeddingDecode(Value):
    """Spec for an embedding, one vector per image in the first output: ``[N, D]``, or ``[N, C, H, W]``, averaged over
    H and W."""

    kind: Literal["embedding"] = "embedding"
    normalize: bool = True
    """Whether to divide an embedding vector by its Euclidean norm, so that a dot product is the cosine similarity."""


class SegmentationDecode(Value):
    """Spec for semantic segmentation, a class per pixel.

    ``output`` has scores ``[N, C, h, w]`` or ``[N, h, w, C]``, or class numbers ``[N, h, w]`` or ``[N, 1, h, w]``.

    With one class and without ``class_numbers``, the output is the score of that class: a pixel belongs to the class if
    the score is above 0.5.
    """

    kind: Literal["segmentation"] = "segmentation"
    output: str
    classes: int
    """Number of classes of a segmentation model, the background counted if the model has one."""
    class_numbers: bool = False
    """Whether a segmentation model's output has class numbers (ArgMax), not scores."""
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    """Function that turns a segmentation model's output into scores; only a threshold needs scores, the best class does
    not."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """Order of the four axes of a segmentation model's output; TensorFlow's models have the classes last."""


class OcrDecode(Value):
    """Spec for a text recogniser: scores of characters along one line, decoded greedily as CTC.

    The best character of each step is taken, repeated characters count once, and blanks are dropped.
    """

    kind: Literal["ocr"] = "ocr"
    output: str
    charset: tuple[str, ...]
    """Characters that a text recogniser's classes stand for, in the order of the output's last axis; the character of
    the blank class is ignored."""
    blank: int = 0
    """Number of a text recogniser's class that stands for no character (the blank of CTC)."""
    layout: Literal["NTC", "TNC"] = "NTC"
    """Order of the axes of a text recogniser's output: N images, T steps, C classes."""
    activation: Literal["none", "softmax"] = "none"
    """Function that turns a text recogniser's output into probabilities."""


class RawDecode(Value):
    """Spec for outputs that are reported as the model gives them."""

    kind: Literal["raw"] = "raw"


DecodeSpec = Annotated[
    ClassificationDecode
    | EmbeddingDecode
    | SegmentationDecode
    | OcrDecode
    | RawDecode
    | GridDecode
    | EndToEndDecode
    | YoloxDecode
    | YoloDecode
    | DetrDecode
    | TripletDecode
    | GflDecode
    | FcosDecode
    | SsdDecode
    | FasterRcnnDecode
    | FaceGridDecode
    | CenterFaceDecode,
    Field(discriminator="kind"),
]
"""Any spec for decoding a model's outputs; the field ``kind`` tells specs apart."""
