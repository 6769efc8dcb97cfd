"""Decoder of text recognisers: from scores of characters along a line to the text (CTC, greedy).

Graves et al., "Connectionist Temporal Classification" (2006), section 3.2: best path decoding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import OcrDecode
from ...frames.preprocess import Geometry
from .activations import softmax
from .decoder import DecodeContext, FloatArray, RunStage
from .results import Text

__all__ = ["OcrDecoder"]


class OcrDecoder:
    """Decoder of text recognisers that takes the best character of every step, merges repeats, and drops blanks.

    The score is the mean probability of the characters, each at its first step, as in PaddleOCR and RapidOCR. A text
    that does not score above the query's threshold is returned empty.
    """

    def __init__(self, spec: OcrDecode, context: DecodeContext) -> None:
        self._spec = spec
        self._threshold = context.threshold

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Text:
        spec = self._spec
        steps = outputs[spec.output][0] if spec.layout == "NTC" else outputs[spec.output][:, 0]
        if steps.shape[-1] != len(spec.charset):
            raise ValueError(f"output {spec.output} has {steps.shape[-1]} classes, but the charset {len(spec.charset)}")
        best = steps.argmax(axis=-1)
        # The first step has no step before it; no class has the number -1.
        kept = np.flatnonzero((best != spec.blank) & (best != np.append(-1, best[:-1])[: len(best)]))
        if len(kept) == 0:
            return Text("", 0.0)
        classes, chosen = best[kept], steps[kept]
        probabilities = softmax(chosen) if spec.activation == "softmax" else chosen
        score = float(probabilities[np.arange(len(kept)), classes].mean())
        if self._threshold is not None and not score > self._threshold:
            return Text("", score)
        return Text("".join(spec.charset[index] for index in classes.tolist()), score)
