"""Decoder for the task ``raw``, which reports every output of a model as it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import RawDecode
from ...frames.preprocess import Geometry
from .decoder import DecodeContext, FloatArray, RunStage
from .results import Raw

__all__ = ["RawDecoder"]


class RawDecoder:
    """Decoder that returns a copy of every output of a model, including the batch axis."""

    def __init__(self, spec: RawDecode, context: DecodeContext) -> None:
        pass

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Raw:
        # Copies, because sinks keep results while the backend runs the next frame into its buffers.
        return Raw({name: np.array(values) for name, values in outputs.items()})
