"""Decoder of one-stage detectors with fixed anchors: SSD, SSDLite, RetinaNet.

Results are those of ``postprocess_detections`` of torchvision's SSD and RetinaNet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import SsdDecode
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid, softmax
from .boxes import Indices, best_of_each, decode_deltas, highest
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection

__all__ = ["SsdDecoder"]

_Candidates = tuple[Indices, Indices, FloatArray]
"""Candidates of a detector: anchor indices, classes (the background not counted) and scores, each ``[K]``."""


class SsdDecoder:
    """Decoder of SSD and RetinaNet: keeps the best candidates of each class or level, suppresses overlaps per class."""

    def __init__(self, spec: SsdDecode, context: DecodeContext) -> None:
        self._spec = spec
        self._anchors = context.tensor(spec.anchors)
        self._report = DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec, logits = self._spec, outputs["logits"][0]
        parts, start = [], 0
        for count in spec.levels or (len(logits),):
            anchors, classes, scores = self._candidates(logits[start : start + count])
            few = best_of_each(scores, classes, spec.topk) if spec.per_class else highest(scores, spec.topk)
            parts.append((anchors[few] + start, classes[few], scores[few]))
            start += count
        anchors, classes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        boxes = decode_deltas(outputs["boxes"][0][anchors], self._anchors[anchors], spec.box_weights)
        return self._report.clipped(boxes, scores, classes, geometry)

    def _candidates(self, logits: FloatArray) -> _Candidates:
        """Return the pairs of anchor and class that score above the threshold.

        Args:
            logits: ``[A, classes]`` of A anchors; ``[A, 1 + classes]`` if the model has a background class.
        """
        first = int(self._spec.background)
        bound = logit(self._report.threshold)
        if self._spec.activation == "sigmoid":
            anchors, classes = np.nonzero(logits[:, first:] > bound)
            scores = sigmoid(logits[anchors, classes + first])
            above = scores > self._report.threshold
            return anchors[above], classes[above], scores[above]
        rows = np.arange(len(logits))
        if self._spec.background:
            # Most anchors are dropped without computing an exponential: the softmax probability of a class is at most
            # its probability against the background alone, sigmoid(logit - background).
            rows = np.flatnonzero(logits[:, 1:].max(axis=1) - logits[:, 0] > bound)
        probabilities = softmax(logits[rows])[:, first:]
        anchors, classes = np.nonzero(probabilities > self._report.threshold)
        return rows[anchors], classes, probabilities[anchors, classes]
