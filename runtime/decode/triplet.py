"""Decoder of models whose final detections are three outputs: labels, boxes and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import TripletDecode
from ...frames.preprocess import Geometry
from .class_names import MOST_CLASSES
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection

__all__ = ["TripletDecoder"]


class TripletDecoder:
    """Decoder of final detections (labels, boxes, scores) that reports the detections above the score threshold."""

    def __init__(self, spec: TripletDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        scores, numbers = outputs[spec.scores].reshape(-1), outputs[spec.labels].reshape(-1)
        likely = (scores > self._report.threshold) & (numbers >= spec.first_class) & (numbers < MOST_CLASSES)
        boxes = outputs[spec.boxes].reshape(-1, 4)[likely].astype(np.float32)
        if spec.normalized:
            boxes *= np.array([geometry.input[1], geometry.input[0]] * 2, np.float32)
        scores, classes = scores[likely].astype(np.float32), numbers[likely].astype(np.intp) - spec.first_class
        kept = self._report.choose(boxes, scores, classes, suppress=False)
        return self._report.report(boxes[kept], scores[kept], classes[kept], geometry)
