"""Recognition of detectors with decoded boxes and no objectness: YOLO-NAS, PP-YOLOE, RTMDet, PicoDet.

Boxes and class scores are two outputs, or the columns of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import GridDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_near_cells, are_scores
from .known_inputs import IMAGENET, MMDETECTION

__all__ = ["recognise_pair", "recognise_rows"]

_YOLO_NAS = {"color": "rgb", "scale": 1 / 255, "fit": "letterbox-center", "pad": 114 / 255}
_COCO_CLASSES = 80
"""Number of a detector's classes to assume where neither the workload nor the model's file names any."""


@dataclass(frozen=True)
class _Kind:
    """Settings of one family of detectors with decoded boxes and no objectness, such as YOLO-NAS or PP-YOLOE."""

    names: frozenset[str] = frozenset()
    input: Mapping[str, Any] = field(default_factory=dict)
    overlap: float = 0.7
    """Overlap (IoU) of two boxes above which a family's detectors drop the box with the lower score."""
    every_class: bool = True
    """Whether a family's detectors report a box under every class above the threshold, not only under the best."""


_UNKNOWN = _Kind()
_KINDS = (
    _Kind(frozenset({"yolo-nas", "yolonas"}), _YOLO_NAS, every_class=False),
    _Kind(frozenset({"pp-yoloe", "ppyoloe"}), IMAGENET),
    _Kind(frozenset({"picodet"}), IMAGENET, 0.6),
    _Kind(frozenset({"rtmdet"}), MMDETECTION, 0.65),
)


def recognise_pair(found: Evidence) -> Recognised | None:
    """Recognise two outputs for A candidates on a grid: boxes ``[N, A, 4]`` and class scores ``[N, A, C]``."""
    outputs = found.of_rank(3)
    if len(outputs) != 2 or len(found.outputs) != 2 or outputs[0].shape[1] != outputs[1].shape[1]:
        return None
    boxes = [output for output in outputs if output.shape[2] == 4]
    if len(boxes) == 2:
        boxes = [output for output in boxes if "box" in output.name.lower()]
    if len(boxes) != 1:
        return None
    if not _is_decoded(found, boxes[0].values[0]):
        return None
    (scores,) = (output for output in outputs if output is not boxes[0])
    return _dense(found, scores, boxes[0].values[0], scores.values[0], boxes=boxes[0].name)


def recognise_rows(found: Evidence) -> Recognised | None:
    """Recognise one output ``[N, A, 4 + C]`` for A candidates on a grid, if the number of classes is known to fit."""
    count = len(found.names) if found.names is not None else _COCO_CLASSES
    for output in found.of_rank(3):
        if output.shape[2] == 4 + count and _is_decoded(found, output.values[0]):
            return _dense(found, output, output.values[0][:, :4], output.values[0][:, 4:])
    return None


def _dense(
    found: Evidence, output: MeasuredOutput, places: NDArray[Any], scores: NDArray[Any], boxes: str | None = None
) -> Recognised:
    """Return the decoder of candidates with boxes ``places [A, 4]`` and class scores ``scores [A, C]``."""
    kind = _kind(found)
    # The corners of a box are in order, but for a few boxes without an area; a centre and a size mostly are not.
    ordered = bool((places[:, 2:] >= places[:, :2]).mean() > 0.5)
    decode = GridDecode(
        output=output.name,
        boxes=boxes,
        transposed=False,
        objectness=False,
        box="xyxy" if ordered or kind is not _UNKNOWN else "cxcywh",
        normalized=bool(np.abs(places).max(initial=0) <= 2),
        activation="none" if are_scores(scores) else "sigmoid",
        classes=scores.shape[1],
        nms_threshold=kind.overlap,
        every_class=kind.every_class,
    )
    return Recognised(decode, kind.input)


def _is_decoded(found: Evidence, boxes: NDArray[Any]) -> bool:
    """Return whether boxes ``[A, values]`` are in input pixels, or the workload or file names the model family."""
    strides = found.strides_of(len(boxes))
    # PP-YOLOE has the coarsest level first.
    known = strides is not None and any(are_near_cells(found, boxes, order) for order in (strides, strides[::-1]))
    return known or _kind(found) is not _UNKNOWN


def _kind(found: Evidence) -> _Kind:
    """Return the family of detectors that the workload or the metadata name; default settings if none is named."""
    return next((kind for kind in _KINDS if found.called(*kind.names)), _UNKNOWN)
