"""Decoder of models with final detections in one output: YOLOv10, YOLO26, YOLOs exported with NMS, YOLOv7's end2end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import EndToEndDecode
from ...frames.preprocess import Geometry
from .boxes import corners
from .class_names import MOST_CLASSES
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection
from .row_parts import RowParts

__all__ = ["EndToEndDecoder"]


class EndToEndDecoder:
    """Decoder of an output with one final detection per row, which reports the rows that score above the threshold.

    Rows of padding have no score or no area.
    """

    def __init__(self, spec: EndToEndDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)
        self._parts = RowParts(spec)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec, values = self._spec, outputs[self._spec.output]
        if spec.columns == "batch-xyxy-class-score":
            rows = values.reshape(-1, 7)
            # An image is decoded alone, so that its rows have the number 0; others are padding.
            rows = rows[rows[:, 0] == 0]
            first, score, number = 1, 6, 5
        else:
            rows = values.reshape(-1, values.shape[-1])
            first, score, number = 0, 4, 5
        known = (rows[:, number] >= spec.first_class) & (rows[:, number] < MOST_CLASSES)
        rows = rows[(rows[:, score] > self._report.threshold) & known]
        boxes = rows[:, first : first + 4].astype(np.float32)
        boxes = corners(boxes) if spec.columns == "cxcywh-score-class" else boxes
        if spec.normalized:
            boxes *= np.array([geometry.input[1], geometry.input[0]] * 2, np.float32)
        classes = rows[:, number].astype(np.intp) - spec.first_class
        scores = rows[:, score].astype(np.float32)
        kept = self._report.choose(boxes, scores, classes, suppress=False)
        return self._parts.report(self._report, rows[kept], boxes[kept], scores[kept], classes[kept], geometry, outputs)
