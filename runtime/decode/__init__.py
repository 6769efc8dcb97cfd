"""Decoding: from a model's raw outputs to what a query answers.

Detection models are compiled up to their raw heads; boxes, thresholds and non-maximum suppression are done here,
so that a backend only ever sees plain tensor graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundles.manifest import (
    CenterFaceDecode,
    ClassificationDecode,
    DecodeSpec,
    EmbeddingDecode,
    FasterRcnnDecode,
    SsdDecode,
    YoloDecode,
)
from ...frames.preprocess import Geometry
from .results import Result

__all__ = ["Decoder", "FloatArray", "RunStage", "build_decoder"]

FloatArray = NDArray[np.float32]
RunStage = Callable[[str, Mapping[str, FloatArray]], dict[str, FloatArray]]
"""Runs another stage of the same model: its name and inputs by name, to its outputs by name."""


class Decoder(Protocol):
    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Result:
        """Decode one image.

        Args:
            outputs: the ``main`` stage's outputs by name, each with a batch axis of 1.
            geometry: where the frame lies in the model's input.
            run: runs a further stage, for two-stage detectors.
        """
        ...


def build_decoder(
    spec: DecodeSpec, tensor: Callable[[str], FloatArray], labels: Sequence[str] | None, threshold: float | None
) -> Decoder:
    """The decoder that a manifest asks for.

    Args:
        spec: how the outputs are to be read.
        tensor: gives the tensors that ``spec`` names (anchors); called here and not while decoding.
        labels: ``labels[i]`` names class i, the background not counted; a class without one is called ``str(i)``.
        threshold: results that do not score above it are left out; the spec's own threshold when None.
    """
    # Imported by need: the families import this module's types, and a box runs few of them.
    if isinstance(spec, ClassificationDecode):
        from .classification import ClassificationDecoder

        return ClassificationDecoder(spec, labels, threshold)
    if isinstance(spec, EmbeddingDecode):
        from .embedding import EmbeddingDecoder

        return EmbeddingDecoder(spec)
    if isinstance(spec, SsdDecode):
        from .ssd import SsdDecoder

        return SsdDecoder(spec, tensor, labels, threshold)
    if isinstance(spec, FasterRcnnDecode):
        from .faster_rcnn import FasterRcnnDecoder

        return FasterRcnnDecoder(spec, tensor, labels, threshold)
    if isinstance(spec, YoloDecode):
        from .yolo import YoloDecoder

        return YoloDecoder(spec, labels, threshold)
    if isinstance(spec, CenterFaceDecode):
        from .centerface import CenterFaceDecoder

        return CenterFaceDecoder(spec, labels, threshold)
    raise AssertionError(f"no decoder for {spec!r}")
