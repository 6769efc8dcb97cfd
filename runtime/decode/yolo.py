"""Decoder of YOLOv3 and Tiny-YOLOv3 (Redmon and Farhadi, "YOLOv3: An Incremental Improvement", section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import YoloDecode, YoloHead
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid
from .boxes import Indices, best_of_each
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection

__all__ = ["YoloDecoder"]


class YoloDecoder:
    """Decoder of YOLOv3-style models, which have several outputs, each with a stride and anchors of its own.

    A box has its centre at (sigmoid(t_xy) + cell) * stride and the size exp(t_wh) * anchor. A score is
    sigmoid(objectness) * sigmoid(class). As in Darknet, a box is reported under every class whose score is above the
    threshold.
    """

    def __init__(self, spec: YoloDecode, context: DecodeContext) -> None:
        self._spec = spec
        self._report = DetectionReport(spec, context)
        self._anchors = [np.array(head.anchors, np.float32) for head in spec.heads]

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        parts = [
            self._head(outputs[head.output][0], head, anchors)
            for head, anchors in zip(self._spec.heads, self._anchors, strict=True)
        ]
        boxes, scores, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
        few = best_of_each(scores, classes, self._spec.topk)
        return self._report.clipped(boxes[few], scores[few], classes[few], geometry)

    def _head(self, raw: FloatArray, head: YoloHead, anchors: FloatArray) -> tuple[FloatArray, FloatArray, Indices]:
        """Return the boxes, scores and classes above the threshold in one output ``[A * (5 + classes), H, W]``."""
        raw = raw.reshape(len(anchors), -1, *raw.shape[1:])
        # A score is at most the objectness, so the other values are read only where the objectness is high enough.
        anchor, y, x = np.nonzero(raw[:, 4] > logit(self._report.threshold))
        values = raw[anchor, :, y, x]
        scores = sigmoid(values[:, 4:])
        scores = scores[:, 1:] * scores[:, :1]
        row, classes = np.nonzero(scores > self._report.threshold)
        centers = (sigmoid(values[:, :2]) + np.stack([x, y], axis=1).astype(np.float32)) * np.float32(head.stride)
        # A huge exponent becomes infinity, and its box is clipped to the frame.
        with np.errstate(over="ignore"):
            half = np.exp(values[:, 2:4]) * anchors[anchor] * np.float32(0.5)
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        return boxes[row], scores[row, classes], classes
