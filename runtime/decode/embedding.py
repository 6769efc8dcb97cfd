"""A feature vector, optionally of unit length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.manifest import EmbeddingDecode
from ...frames.preprocess import Geometry
from . import FloatArray, RunStage
from .results import Embedding

__all__ = ["EmbeddingDecoder"]


class EmbeddingDecoder:
    """The first output, averaged over its pixels where it has any."""

    def __init__(self, spec: EmbeddingDecode) -> None:
        self._normalize = spec.normalize

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Embedding:
        values = next(iter(outputs.values()))[0]
        if values.ndim == 3:
            values = values.mean(axis=(1, 2))
        if self._normalize:
            # A zero vector stays zero: its direction is undefined and NaN would not survive JSON.
            values = values / max(float(np.linalg.norm(values)), 1e-12)
        return Embedding(tuple(values.tolist()))
