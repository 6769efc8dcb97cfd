"""Decoder of YOLOX (Ge et al., "YOLOX: Exceeding YOLO Series in 2021").

Results are those of ``postprocess`` in YOLOX's own code.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import YoloxDecode
from ...frames.preprocess import Geometry
from .boxes import corners
from .decoder import DecodeContext, FloatArray, RunStage
from .levels import cells_of_levels
from .reporting import DetectionReport, best_class
from .results import Detection

__all__ = ["YoloxDecoder"]


class YoloxDecoder:
    """Decoder of YOLOX that reports each candidate under its best class, and suppresses overlaps within each class.

    A box has its centre at (xy + cell) * stride and the size exp(wh) * stride. A score is objectness * class.
    """

    def __init__(self, spec: YoloxDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        rows = outputs[self._spec.output][0]
        likely = np.flatnonzero(rows[:, 4] > self._report.threshold)
        few = rows[likely, 5 : 5 + self._spec.classes] * rows[likely, 4:5]
        places, classes, scores = best_class(few.T, self._report.threshold, self._spec.topk)
        places = likely[places]
        cells, strides = cells_of_levels(geometry.input, self._spec.strides)
        values, stride = rows[places, :4], strides[places, None]
        # A huge exponent becomes infinity; a box that is not finite is left out.
        centers = (values[:, :2] + cells[places]) * stride
        boxes = _unrounded(corners(np.concatenate([centers, np.exp(values[:, 2:]) * stride], axis=1)), geometry)
        kept = self._report.choose(boxes, scores, classes)
        return self._report.report(boxes[kept], scores[kept], classes[kept], geometry)


def _unrounded(boxes: FloatArray, geometry: Geometry) -> FloatArray:
    """Return boxes ``[K, 4]`` that are mapped back to the frame by its exact ratio, as YOLOX does.

    YOLOX rounds the sides of a letterboxed frame down to pixels, but divides boxes by the ratio before rounding.
    """
    ratio = min(side / length for side, length in zip(geometry.input, geometry.source, strict=True))
    height, width = (length * ratio for length in geometry.source)
    is_letterbox = abs(geometry.valid[0] - height) < 1 and abs(geometry.valid[1] - width) < 1
    if geometry.offset != (0, 0) or not is_letterbox:
        return boxes
    return boxes * np.array([geometry.valid[1] / width, geometry.valid[0] / height] * 2, np.float32)
