"""Decoding of a model's raw outputs into the result of a query: detections, classes, masks, text or an embedding.

Detection models are compiled without their post-processing. Boxes, thresholds and non-maximum suppression are computed
here with NumPy and OpenCV, so that a backend only runs plain tensor graphs.

Every family of models has one module with one :class:`Decoder`, and :mod:`.decoders` chooses among them. A detector
chooses candidates by their scores, computes their boxes, and hands both to a :class:`.reporting.DetectionReport`, which
suppresses overlaps and maps boxes to source pixels. :mod:`.agreement` compares results with a reference.
"""

from .decoder import DecodeContext, Decoder, FloatArray, RunStage
from .decoders import DECODERS, build_decoder

__all__ = ["DECODERS", "DecodeContext", "Decoder", "FloatArray", "RunStage", "build_decoder"]
