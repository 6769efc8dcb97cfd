"""One-stage detectors with fixed anchors: SSD, SSDLite, RetinaNet.

The semantics are those of ``postprocess_detections`` of torchvision's SSD and RetinaNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...bundles.manifest import SsdDecode
from ...frames.preprocess import Geometry
from . import FloatArray, RunStage
from .activations import logit, sigmoid, softmax
from .boxes import Indices, best_of_each, decode_deltas, detections, highest
from .results import Detection

__all__ = ["SsdDecoder"]

_Candidates = tuple[Indices, Indices, FloatArray]
"""Anchors, classes (the background not counted) and scores, each ``[K]``."""


class SsdDecoder:
    """Threshold, the best candidates of each class or level, boxes from deltas, suppression within each class."""

    def __init__(
        self,
        spec: SsdDecode,
        tensor: Callable[[str], FloatArray],
        labels: Sequence[str] | None,
        threshold: float | None,
    ) -> None:
        self._spec = spec
        self._anchors = tensor(spec.anchors)
        self._labels = labels
        self._threshold = spec.score_threshold if threshold is None else threshold

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
        return detections(boxes, scores, classes, spec, geometry, self._labels)

    def _candidates(self, logits: FloatArray) -> _Candidates:
        """Pairs of anchor and class of ``logits [A, classes (+ 1)]`` that score above the threshold."""
        first = int(self._spec.background)
        bound = logit(self._threshold)
        if self._spec.activation == "sigmoid":
            anchors, classes = np.nonzero(logits[:, first:] > bound)
            scores = sigmoid(logits[anchors, classes + first])
            above = scores > self._threshold
            return anchors[above], classes[above], scores[above]
        rows = np.arange(len(logits))
        if self._spec.background:
            # A class's probability is at most what it has against the background alone, sigmoid(logit - background):
            # most anchors go without any exponential.
            rows = np.flatnonzero(logits[:, 1:].max(axis=1) - logits[:, 0] > bound)
        probabilities = softmax(logits[rows])[:, first:]
        anchors, classes = np.nonzero(probabilities > self._threshold)
        return rows[anchors], classes, probabilities[anchors, classes]
