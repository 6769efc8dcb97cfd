"""CenterFace: faces as points (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundles.manifest import CenterFaceDecode
from ...frames.preprocess import Geometry
from . import FloatArray, RunStage
from .boxes import detections, highest
from .results import Detection

__all__ = ["CenterFaceDecoder"]


class CenterFaceDecoder:
    """Box of centre (cell + offset + 0.5) * stride and size exp(scale) * stride where the heatmap passes.

    Scale and offset have the vertical value first. The heatmap is a probability already. The published code
    moves a face that is cut by the left or upper edge into the frame; here it is clipped.
    """

    def __init__(self, spec: CenterFaceDecode, labels: Sequence[str] | None, threshold: float | None) -> None:
        self._spec = spec
        self._labels = labels
        self._threshold = spec.score_threshold if threshold is None else threshold

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        heatmap = outputs[spec.heatmap][0, 0]
        y, x = np.nonzero(heatmap > self._threshold)
        scores = heatmap[y, x]
        few = highest(scores, spec.topk)
        y, x, scores = y[few], x[few], scores[few]
        offset = outputs[spec.offset][0, :, y, x]
        stride = np.float32(spec.stride)
        centers = (np.stack([x, y], axis=1).astype(np.float32) + offset[:, ::-1] + np.float32(0.5)) * stride
        with np.errstate(over="ignore"):
            half = np.exp(outputs[spec.scale][0, :, y, x][:, ::-1]) * (stride / 2)
        boxes: FloatArray = np.concatenate([centers - half, centers + half], axis=1)
        return detections(boxes, scores, np.zeros(len(boxes), np.intp), spec, geometry, self._labels)
