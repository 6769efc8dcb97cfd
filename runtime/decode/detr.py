"""Decoder of DETR (Carion et al., "End-to-End Object Detection with Transformers") and its descendants.

Outputs have the layout of Hugging Face's models. Results are those of ``post_process_object_detection`` of the image
processors of DETR and RT-DETR.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import DetrDecode
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid, softmax
from .boxes import Indices, corners, highest
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport, best_class
from .results import Detection

__all__ = ["DetrDecoder"]


class DetrDecoder:
    """Decoder of DETR's object queries. It suppresses no overlaps, because the model predicts each object once."""

    def __init__(self, spec: DetrDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        places, classes, scores = self._candidates(outputs[self._spec.logits][0])
        boxes = corners(outputs[self._spec.boxes][0][places].astype(np.float32))
        boxes *= np.array([geometry.input[1], geometry.input[0]] * 2, np.float32)
        kept = self._report.choose(boxes, scores, classes, suppress=False)
        return self._report.report(boxes[kept], scores[kept], classes[kept], geometry)

    def _candidates(self, logits: FloatArray) -> tuple[Indices, Indices, FloatArray]:
        """Return the object queries that score above the threshold: their indices, classes and scores, each ``[K]``."""
        threshold, count = self._report.threshold, len(logits)
        if self._spec.activation == "softmax":
            # The last class is the background.
            return best_class(softmax(logits)[:, :-1].T, threshold, count)
        places, classes = np.nonzero(logits > logit(threshold))
        values = logits[places, classes]
        # An object query may be reported under several classes, but at most as many pairs as there are object queries.
        best = highest(values, count)
        scores = sigmoid(values[best])
        above = np.flatnonzero(scores > threshold)
        return places[best][above], classes[best][above], scores[above]
