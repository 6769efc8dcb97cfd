"""Decoder of torchvision's FCOS (Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection").

Results are those of the ``postprocess_detections`` of torchvision's FCOS.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import FcosDecode
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid
from .boxes import Indices, highest
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection

__all__ = ["FcosDecoder"]


class FcosDecoder:
    """Decoder of FCOS that keeps the best candidates of each feature level, and suppresses overlaps per class."""

    def __init__(self, spec: FcosDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)
        anchors = context.tensor(spec.anchors)
        self._centers = (anchors[:, :2] + anchors[:, 2:]) * np.float32(0.5)
        self._sides = anchors[:, 2:] - anchors[:, :2]

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        logits, centerness = outputs[spec.logits][0], outputs[spec.centerness][0].reshape(-1)
        parts, start = [], 0
        for count in spec.levels or (len(logits),):
            level = slice(start, start + count)
            places, classes, scores = self._candidates(logits[level], centerness[level])
            few = highest(scores, spec.topk)
            parts.append((places[few] + start, classes[few], scores[few]))
            start += count
        places, classes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        reach = outputs[spec.boxes][0][places] * np.tile(self._sides[places], 2)
        centers = self._centers[places]
        boxes: FloatArray = np.concatenate([centers - reach[:, :2], centers + reach[:, 2:]], axis=1)
        return self._report.clipped(boxes, scores, classes, geometry)

    def _candidates(self, logits: FloatArray, centerness: FloatArray) -> tuple[Indices, Indices, FloatArray]:
        """Return the pairs of anchor and class that score above the threshold: indices, classes, scores, each ``[K]``.

        Args:
            logits: class scores of A anchors before the sigmoid, ``[A, classes]``.
            centerness: centerness of A anchors before the sigmoid, ``[A]``.
        """
        threshold = self._report.threshold
        # Both factors are at most 1, so that each must exceed the square of the threshold.
        bound = logit(threshold**2) if threshold > 0 else -np.inf
        likely = np.flatnonzero(centerness > bound)
        rows, classes = np.nonzero(logits[likely] > bound)
        places = likely[rows]
        scores = np.sqrt(sigmoid(logits[places, classes]) * sigmoid(centerness[places]))
        above = np.flatnonzero(scores > threshold)
        return places[above], classes[above], scores[above]
