"""Decoder of the face detector CenterFace, in which a face is the point where a heatmap is high.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import CenterFaceDecode
from ...frames.preprocess import Geometry
from .boxes import highest
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection

__all__ = ["CenterFaceDecoder"]


class CenterFaceDecoder:
    """Decoder of CenterFace that returns a face box for every cell of the heatmap above the score threshold.

    A box has its centre at (cell + offset + 0.5) * stride and the size exp(scale) * stride. Scale and offset have the
    vertical value first. The heatmap holds probabilities. The published code moves a face that is cut by the left or
    upper edge into the frame; this decoder clips the face.
    """

    def __init__(self, spec: CenterFaceDecode, context: DecodeContext) -> None:
        self._spec = spec
        self._report = DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        heatmap = outputs[spec.heatmap][0, 0]
        y, x = np.nonzero(heatmap > self._report.threshold)
        scores = heatmap[y, x]
        few = highest(scores, spec.topk)
        y, x, scores = y[few], x[few], scores[few]
        offset = outputs[spec.offset][0, :, y, x]
        stride = np.float32(spec.stride)
        centers = (np.stack([x, y], axis=1).astype(np.float32) + offset[:, ::-1] + np.float32(0.5)) * stride
        with np.errstate(over="ignore"):
            half = np.exp(outputs[spec.scale][0, :, y, x][:, ::-1]) * (stride / 2)
        boxes: FloatArray = np.concatenate([centers - half, centers + half], axis=1)
        return self._report.clipped(boxes, scores, np.zeros(len(boxes), np.intp), geometry)
