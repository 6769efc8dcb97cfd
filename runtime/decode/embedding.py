"""Decoder of embedding models, whose result is a feature vector, optionally of unit length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import EmbeddingDecode
from ...frames.preprocess import Geometry
from .decoder import DecodeContext, FloatArray, RunStage
from .results import Embedding

__all__ = ["EmbeddingDecoder"]


class EmbeddingDecoder:
    """Decoder that returns a model's first output as a feature vector; a feature map is averaged over its pixels."""

    def __init__(self, spec: EmbeddingDecode, context: DecodeContext) -> None:
        self._normalize = spec.normalize

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Embedding:
        values = next(iter(outputs.values()))[0]
        if values.ndim == 3:
            values = values.mean(axis=(1, 2))
        if self._normalize:
            # A zero vector stays zero: it has no direction, and JSON has no NaN.
            values = values / max(float(np.linalg.norm(values)), 1e-12)
        return Embedding(tuple(values.tolist()))
