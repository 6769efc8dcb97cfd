"""Classification: class scores to the best classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import ClassificationDecode
from ...frames.preprocess import Geometry
from .activations import label, softmax
from .decoder import DecodeContext, FloatArray, RunStage
from .results import Class

__all__ = ["ClassificationDecoder"]


class ClassificationDecoder:
    """A decoder that returns the ``top_k`` best classes, best first; applies softmax if the model has none."""

    def __init__(self, spec: ClassificationDecode, context: DecodeContext) -> None:
        self._top_k = spec.top_k
        self._softmax = spec.activation == "softmax"
        self._labels = context.labels
        self._threshold = context.threshold

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Class, ...]:
        scores = next(iter(outputs.values()))[0]
        scores = softmax(scores) if self._softmax else scores
        best = np.argsort(-scores, kind="stable")[: self._top_k]
        return tuple(
            Class(label(self._labels, index), score)
            for index, score in zip(best.tolist(), scores[best].tolist(), strict=True)
            if self._threshold is None or score > self._threshold
        )
