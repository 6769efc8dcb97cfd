"""Decoder of YOLOs, of Ultralytics' RT-DETR, and of detectors like RTMDet: a box and class scores per candidate.

Results are those of Ultralytics' ``non_max_suppression`` with one label per candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import GridDecode
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid
from .boxes import Indices, corners
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport, best_class, every_class
from .results import Detection
from .row_parts import RowParts

__all__ = ["GridDecoder"]


class GridDecoder:
    """Decoder of YOLO outputs that reports each candidate under its best class, and suppresses overlaps per class."""

    def __init__(self, spec: GridDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)
        self._parts = RowParts(spec)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        values = outputs[spec.output][0]
        # Views, [values, A]: nothing is copied before the few candidates that count are known.
        columns = values if spec.transposed else values.T
        first = 4 if spec.boxes is None else 0
        places, classes, scores = self._candidates(columns[first : first + int(spec.objectness) + spec.classes])
        rows = columns[:, places].T
        boxes = (rows[:, :4] if spec.boxes is None else outputs[spec.boxes][0][places]).astype(np.float32)
        if spec.normalized:
            boxes *= np.array([geometry.input[1], geometry.input[0]] * 2, np.float32)
        boxes = corners(boxes) if spec.box == "cxcywh" else boxes
        kept = self._report.choose(boxes, scores, classes, suppress=spec.nms)
        return self._parts.report(self._report, rows[kept], boxes[kept], scores[kept], classes[kept], geometry, outputs)

    def _candidates(self, columns: FloatArray) -> tuple[Indices, Indices, FloatArray]:
        """Return the candidates that score above the threshold: indices, best classes and scores, each ``[K]``.

        Args:
            columns: class scores of A candidates, ``[C, A]``, or ``[1 + C, A]`` with the objectness first.
        """
        threshold, turn = self._report.threshold, self._spec.activation == "sigmoid"
        bound = logit(threshold) if turn else threshold
        if not self._spec.objectness:
            choose = every_class if self._spec.every_class else best_class
            places, classes, best = choose(columns, bound, self._spec.topk)
            scores = sigmoid(best) if turn else best
        else:
            # A score is at most the objectness, so that classes are read only where the objectness is high enough.
            likely = np.flatnonzero(columns[0] > bound)
            few = columns[:, likely]
            few = sigmoid(few) if turn else few
            places, classes, scores = best_class(few[1:] * few[0], threshold, self._spec.topk)
            places = likely[places]
        above = np.flatnonzero(scores > threshold)
        return places[above], classes[above], scores[above].astype(np.float32, copy=False)
