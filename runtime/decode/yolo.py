"""YOLOv3-style heads (Redmon and Farhadi, "YOLOv3: An Incremental Improvement", section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundles.manifest import YoloDecode, YoloHead
from ...frames.preprocess import Geometry
from . import FloatArray, RunStage
from .activations import logit, sigmoid
from .boxes import Indices, best_of_each, detections
from .results import Detection

__all__ = ["YoloDecoder"]


class YoloDecoder:
    """Box = ((sigmoid(t_xy) + cell) * stride, exp(t_wh) * anchor); score = sigmoid(objectness) * sigmoid(class).

    As in Darknet, a box is reported under every class whose score is above the threshold.
    """

    def __init__(self, spec: YoloDecode, labels: Sequence[str] | None, threshold: float | None) -> None:
        self._spec = spec
        self._labels = labels
        self._threshold = spec.score_threshold if threshold is None else threshold
        self._anchors = [np.array(head.anchors, np.float32) for head in spec.heads]

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        parts = [
            self._head(outputs[head.output][0], head, anchors)
            for head, anchors in zip(self._spec.heads, self._anchors, strict=True)
        ]
        boxes, scores, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
        few = best_of_each(scores, classes, self._spec.topk)
        return detections(boxes[few], scores[few], classes[few], self._spec, geometry, self._labels)

    def _head(self, raw: FloatArray, head: YoloHead, anchors: FloatArray) -> tuple[FloatArray, FloatArray, Indices]:
        """Boxes, scores and classes of one output ``[A * (5 + classes), H, W]``."""
        raw = raw.reshape(len(anchors), -1, *raw.shape[1:])
        # The score is at most the objectness: all other values are read only where that passes.
        anchor, y, x = np.nonzero(raw[:, 4] > logit(self._threshold))
        values = raw[anchor, :, y, x]
        scores = sigmoid(values[:, 4:])
        scores = scores[:, 1:] * scores[:, :1]
        row, classes = np.nonzero(scores > self._threshold)
        centers = (sigmoid(values[:, :2]) + np.stack([x, y], axis=1).astype(np.float32)) * np.float32(head.stride)
        # A wild exponent becomes infinite and is clipped to the frame.
        with np.errstate(over="ignore"):
            half = np.exp(values[:, 2:4]) * anchors[anchor] * np.float32(0.5)
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        return boxes[row], scores[row, classes], classes
