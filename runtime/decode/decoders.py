"""Registry of decoders: finds a decoder's class by the ``kind`` of its spec, and imports it only when it is needed.

A new decoder is one spec in :mod:`gemel.bundles.decode_specs`, one file in this folder with a class that is made from
the spec and a :class:`.decoder.DecodeContext`, and one line in the table of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

import numpy as np

from ...bundles.decode_specs import DecodeSpec
from ...frames.preprocess import Geometry
from .decoder import DecodeContext, Decoder, FloatArray, RunStage
from .results import Result

__all__ = ["DECODERS", "build_decoder"]

DECODERS = {
    "centerface": ".centerface:CenterFaceDecoder",
    "classification": ".classification:ClassificationDecoder",
    "detr": ".detr:DetrDecoder",
    "embedding": ".embedding:EmbeddingDecoder",
    "end-to-end": ".end_to_end:EndToEndDecoder",
    "face-grid": ".faces:FaceGridDecoder",
    "faster-rcnn": ".faster_rcnn:FasterRcnnDecoder",
    "fcos": ".fcos:FcosDecoder",
    "gfl": ".gfl:GflDecoder",
    "grid": ".grid:GridDecoder",
    "ocr": ".ocr:OcrDecoder",
    "raw": ".raw:RawDecoder",
    "segmentation": ".segmentation:SegmentationDecoder",
    "ssd": ".ssd:SsdDecoder",
    "triplet": ".triplet:TripletDecoder",
    "yolo": ".yolo:YoloDecoder",
    "yolox": ".yolox:YoloxDecoder",
}
"""Kind of a decoder's spec -> ``module:class`` of the decoder; a leading dot stands for ``gemel.runtime.decode``."""


def build_decoder(spec: DecodeSpec, context: DecodeContext) -> Decoder:
    """Return the decoder for a model's outputs, as the spec in a bundle's manifest asks.

    Args:
        spec: kind of the model's outputs, and parameters of their post-processing.
        context: settings of the query, and tensors of the bundle.
    """
    module, name = DECODERS[spec.kind].split(":")
    decoder = cast(Decoder, getattr(import_module(module, __package__), name)(spec, context))

    def decode(outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Result:
        # A diverged model gives infinities and NaN, which decoders leave out. NumPy need not warn of them.
        with np.errstate(all="ignore"):
            return decoder(outputs, geometry, run)

    return decode
