"""Class scores to the best classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundles.manifest import ClassificationDecode
from ...frames.preprocess import Geometry
from . import FloatArray, RunStage
from .activations import label, softmax
from .results import Class

__all__ = ["ClassificationDecoder"]


class ClassificationDecoder:
    """Softmax where the model has none, then the ``top_k`` best classes, best first."""

    def __init__(self, spec: ClassificationDecode, labels: Sequence[str] | None, threshold: float | None) -> None:
        self._top_k = spec.top_k
        self._softmax = spec.activation == "softmax"
        self._labels = labels
        self._threshold = threshold

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Class, ...]:
        scores = next(iter(outputs.values()))[0]
        scores = softmax(scores) if self._softmax else scores
        best = np.argsort(-scores, kind="stable")[: self._top_k]
        return tuple(
            Class(label(self._labels, index), score)
            for index, score in zip(best.tolist(), scores[best].tolist(), strict=True)
            if self._threshold is None or score > self._threshold
        )
