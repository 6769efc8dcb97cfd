"""Registry of decoders: finds the class for a spec by its ``kind``, and imports it only when a query needs it.

A new decoder is one spec in :mod:`gemel.bundles.decode_specs`, one file in this folder with a class that is made from
the spec and a :class:`.decoder.DecodeContext`, and one line in the table below.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ...bundles.decode_specs import DecodeSpec
from .decoder import DecodeContext, Decoder

__all__ = ["DECODERS", "build_decoder"]

DECODERS = {
    "centerface": ".centerface:CenterFaceDecoder",
    "classification": ".classification:ClassificationDecoder",
    "embedding": ".embedding:EmbeddingDecoder",
    "faster-rcnn": ".faster_rcnn:FasterRcnnDecoder",
    "ssd": ".ssd:SsdDecoder",
    "yolo": ".yolo:YoloDecoder",
}
"""Kind of a decode spec to ``module:class``; a module that starts with a dot lies in this folder."""


def build_decoder(spec: DecodeSpec, context: DecodeContext) -> Decoder:
    """Return the decoder that a manifest asks for.

    Args:
        spec: kind of the outputs, and parameters of their post-processing.
        context: settings of the query, and tensors of the bundle.
    """
    module, name = DECODERS[spec.kind].split(":")
    return cast(Decoder, getattr(import_module(module, __package__), name)(spec, context))
