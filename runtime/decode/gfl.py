"""Decoder of NanoDet and PicoDet, whose box sides are distributions over distances.

Li et al., "Generalized Focal Loss", equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundles.decode_specs import GflDecode
from ...frames.preprocess import Geometry
from .activations import logit, sigmoid, softmax
from .boxes import best_of_each
from .decoder import DecodeContext, FloatArray, RunStage
from .levels import cells_of_levels
from .reporting import DetectionReport
from .results import Detection

__all__ = ["GflDecoder"]


class GflDecoder:
    """Decoder of NanoDet and PicoDet that reports each box under every class that scores above the threshold.

    Overlaps are suppressed within each class.
    """

    def __init__(self, spec: GflDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)
        self._bins = np.arange(spec.reg_max + 1, dtype=np.float32)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec, threshold = self._spec, self._report.threshold
        values = _rows(outputs, spec.scores)
        distances = _rows(outputs, spec.distances) if spec.distances else values[:, spec.classes :]
        values = values[:, : spec.classes]
        turn = spec.activation == "sigmoid"
        places, classes = np.nonzero(values > (logit(threshold) if turn else threshold))
        scores = values[places, classes].astype(np.float32)
        scores = sigmoid(scores) if turn else scores
        above = np.flatnonzero(scores > threshold)
        few = above[best_of_each(scores[above], classes[above], spec.topk)]
        places, classes, scores = places[few], classes[few], scores[few]
        cells, strides = cells_of_levels(geometry.input, spec.strides)
        bins = softmax(distances[places].reshape(len(places), 4, len(self._bins)))
        reach = bins @ self._bins * strides[places, None]
        centers = (cells[places] + np.float32(spec.cell_offset)) * strides[places, None]
        boxes: FloatArray = np.concatenate([centers - reach[:, :2], centers + reach[:, 2:]], axis=1)
        return self._report.clipped(boxes, scores, classes, geometry)


def _rows(outputs: Mapping[str, FloatArray], names: Sequence[str]) -> FloatArray:
    """Return NanoDet's or PicoDet's outputs of all feature levels for the first image, joined as ``[A, values]``.

    An output of a level is ``[N, A, values]`` or ``[N, values, h, w]``.
    """
    parts = [outputs[name][0] for name in names]
    flat = [part.reshape(len(part), -1).T if part.ndim == 3 else part for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat)
