"""Meaning of a model's outputs: one value per kind of head, from which :mod:`gemel.runtime.decode` makes a decoder.

Values for detectors are in :mod:`.detection_specs` and :mod:`.anchor_specs`.
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
    """Class scores ``[N, classes]`` in the first output; or class numbers, any shape with one number per image."""

    kind: Literal["classification"] = "classification"
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """Function that turns the output into probabilities; ``none`` if the output has probabilities."""
    classes: int
    """Number of scores. 1 with ``sigmoid`` or ``none`` is a binary classifier: the score of "yes"."""
    top_k: int = 5
    """Most classes that one result names, best first."""
    multi_label: bool = False
    """Whether an image may have several classes: all above the threshold are reported, by default above 0.5."""
    class_numbers: bool = False
    """Whether the output has class numbers (ArgMax), not scores; a class is then reported with score 1."""


class EmbeddingDecode(Value):
    """One vector per image in the first output: ``[N, D]``, or ``[N, C, H, W]``, which is averaged over H and W."""

    kind: Literal["embedding"] = "embedding"
    normalize: bool = True
    """Whether to divide by the Euclidean norm, so that a dot product is the cosine similarity."""


class SegmentationDecode(Value):
    """A class per pixel: ``output [N, C, h, w]`` of scores, or ``[N, h, w]`` or ``[N, 1, h, w]`` of class numbers.

    With one class and without ``class_numbers``, the output is the score of that class: a pixel belongs to the class if
    the score is above 0.5.
    """

    kind: Literal["segmentation"] = "segmentation"
    output: str
    classes: int
    """Number of classes, the background counted if the model has one."""
    class_numbers: bool = False
    """Whether the output has class numbers (ArgMax), not scores."""
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    """Function that turns the output into scores; only a threshold needs scores, the best class does not."""


class OcrDecode(Value):
    """Scores of characters along one line of text, decoded greedily as CTC: the best character of each step.

    Repeated characters count once, and blanks are dropped.
    """

    kind: Literal["ocr"] = "ocr"
    output: str
    charset: tuple[str, ...]
    """Text of each class, in the order of the output's last axis; that of the blank is ignored."""
    blank: int = 0
    """Class that stands for no character."""
    layout: Literal["NTC", "TNC"] = "NTC"
    """Axes of the output: N images, T steps, C classes."""
    activation: Literal["none", "softmax"] = "none"
    """Function that turns the output into probabilities."""


class RawDecode(Value):
    """Outputs that are reported as the model gives them."""

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
"""Meaning of a model's outputs, told apart by ``kind``."""
