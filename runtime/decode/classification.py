"""Decoder of classifiers: from class scores, or the number of the best class, to the classes of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...bundles.decode_specs import ClassificationDecode
from ...frames.preprocess import Geometry
from .activations import sigmoid, softmax
from .class_names import MOST_CLASSES, ClassNames
from .decoder import DecodeContext, FloatArray, RunStage
from .results import Class

__all__ = ["ClassificationDecoder"]

_LIKELY = 0.5
"""Score that a class of a multi-label model must exceed to be reported, if the query has no threshold."""


class ClassificationDecoder:
    """Decoder of a classifier that returns the ``top_k`` best classes, or all likely ones of a multi-label model.

    Classes are sorted by score, best first.

    A binary classifier has one output, the score of "yes". Its classes are 0 and 1, named "no" and "yes" unless the
    query has two labels. If the query has one label, the only class has this label and the score.
    """

    def __init__(self, spec: ClassificationDecode, context: DecodeContext) -> None:
        self._spec, self._threshold = spec, context.threshold
        self._binary = spec.classes == 1 and not spec.class_numbers and len(context.labels or ()) != 1
        if self._binary and not context.labels:
            context = replace(context, labels=("no", "yes"))
        self._names = ClassNames(context)
        if spec.multi_label and self._threshold is None:
            self._threshold = _LIKELY

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Class, ...]:
        values = np.asarray(next(iter(outputs.values()))).reshape(-1)
        if self._spec.class_numbers:
            values = values[(values >= 0) & (values < MOST_CLASSES)]
            numbers, scores = values[:1].astype(np.intp), np.ones(len(values[:1]), np.float32)
        else:
            scores = self._scores(values.astype(np.float32, copy=False))
            numbers = np.arange(len(scores))
        usable = self._names.wanted(numbers) & np.isfinite(scores)
        if self._threshold is not None:
            usable &= scores > self._threshold
        numbers, scores = numbers[usable], scores[usable]
        best = np.argsort(-scores, kind="stable")
        if not self._spec.multi_label:
            best = best[: self._spec.top_k]
        return tuple(
            Class(self._names.name(number), score, self._names.number(number))
            for number, score in zip(numbers[best].tolist(), scores[best].tolist(), strict=True)
        )

    def _scores(self, values: FloatArray) -> FloatArray:
        """Return the probability of each class, given the classifier's output for one image."""
        if self._spec.activation == "softmax" and self._spec.classes > 1:
            return softmax(values)
        scores = values if self._spec.activation == "none" else sigmoid(values)
        return np.concatenate([1 - scores, scores]) if self._binary else scores
