"""Decoder of face detectors with landmarks: SCRFD, RetinaFace, YuNet, whose candidates lie on a grid.

Results are those of InsightFace's SCRFD, of Pytorch_Retinaface's ``decode`` and ``decode_landm``, and of OpenCV's
``FaceDetectorYN``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...bundles.decode_specs import FaceGridDecode
from ...frames.preprocess import Geometry
from .activations import sigmoid, softmax
from .boxes import Indices, corners, highest
from .decoder import DecodeContext, FloatArray, RunStage
from .levels import cells_of_levels
from .reporting import DetectionReport
from .results import Detection

__all__ = ["FaceGridDecoder"]

_ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "none": lambda values: values,
    "sigmoid": sigmoid,
    "softmax": softmax,
}


class FaceGridDecoder:
    """Decoder of face detectors that returns a box and landmarks for each candidate above the score threshold.

    Boxes that overlap a better one are dropped.
    """

    def __init__(self, spec: FaceGridDecode, context: DecodeContext) -> None:
        self._spec, self._report = spec, DetectionReport(spec, context)
        self._activation = _ACTIVATIONS[spec.activation]

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        spec = self._spec
        scores = self._scores(outputs)
        likely = np.flatnonzero(scores > self._report.threshold)
        places = likely[highest(scores[likely], spec.topk)]
        points = _rows(outputs, spec.points, 2 * spec.landmarks)[places] if spec.points else None
        # A huge exponent becomes infinity; a box that is not finite is left out.
        boxes, dots = self._decode(places, _rows(outputs, spec.boxes, 4)[places], points, geometry)
        scores, classes = scores[places], np.zeros(len(places), np.intp)
        kept = self._report.choose(boxes, scores, classes)
        dots = None if dots is None else dots[kept]
        return self._report.report(boxes[kept], scores[kept], classes[kept], geometry, landmarks=dots)

    def _scores(self, outputs: Mapping[str, FloatArray]) -> FloatArray:
        """Return the score of each of A candidate faces, ``[A]``."""
        spec = self._spec
        values = self._activation(_rows(outputs, spec.scores, 2 if spec.style == "retinaface" else 1))
        if spec.style != "yunet":
            return values[:, -1]
        # The model's values may lie slightly outside the range of a probability.
        both = np.clip(values, 0, 1) * np.clip(self._activation(_rows(outputs, spec.objectness, 1)), 0, 1)
        return np.sqrt(both[:, 0])

    def _decode(
        self, places: Indices, values: FloatArray, points: FloatArray | None, geometry: Geometry
    ) -> tuple[FloatArray, FloatArray | None]:
        """Return the boxes ``[K, 4]`` and landmarks ``[K, P, 2]`` of candidate faces in input pixels.

        Args:
            places: indices of the candidates, ``[K]``.
            values: raw box values of the candidates, ``[K, 4]``.
            points: raw landmark values of the candidates, ``[K, 2P]``; None for a model without landmarks.
            geometry: size of the model's input.
        """
        spec = self._spec
        if spec.style == "retinaface":
            centers, scale = self._priors(geometry.input)
            origin, unit = centers[places], scale[places]
            moved = np.float32(spec.variances[0]) * unit
            sides = unit * np.exp(values[:, 2:] * np.float32(spec.variances[1]))
            boxes = corners(np.concatenate([origin + values[:, :2] * moved, sides], axis=1))
            return boxes, _landmarks(points, origin, moved)
        kinds = spec.kinds if spec.style == "scrfd" else 1
        cells, strides = cells_of_levels(geometry.input, spec.strides, kinds)
        stride = strides[places, None]
        origin = cells[places] * stride
        if spec.style == "scrfd":
            reach = values * stride
            boxes = np.concatenate([origin - reach[:, :2], origin + reach[:, 2:]], axis=1)
        else:
            sides = np.exp(values[:, 2:]) * stride
            boxes = corners(np.concatenate([origin + values[:, :2] * stride, sides], axis=1))
        return boxes, _landmarks(points, origin, stride)

    def _priors(self, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        """Return the centres ``[A, 2]`` and sides ``[A, 1]`` of RetinaFace's priors (anchors), in input pixels."""
        centers, sides = [], []
        for stride, lengths in zip(self._spec.strides, self._spec.min_sizes, strict=True):
            cells, _ = cells_of_levels(size, (stride,), len(lengths))
            centers.append((cells + np.float32(0.5)) * np.float32(stride))
            sides.append(np.tile(np.array(lengths, np.float32), len(cells) // len(lengths)))
        return np.concatenate(centers), np.concatenate(sides)[:, None]


def _landmarks(points: FloatArray | None, origin: FloatArray, unit: FloatArray) -> FloatArray | None:
    """Return the landmarks of faces, ``[K, P, 2]``: ``origin [K, 2]`` plus ``points [K, 2P]`` times ``unit [K, 1]``."""
    if points is None:
        return None
    return origin[:, None] + points.reshape(len(points), points.shape[1] // 2, 2) * unit[:, None]


def _rows(outputs: Mapping[str, FloatArray], names: Sequence[str], width: int) -> FloatArray:
    """Return outputs of a face detector, one per feature level, joined as rows of ``width`` values per candidate."""
    parts = [outputs[name].reshape(-1, width) for name in names]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
