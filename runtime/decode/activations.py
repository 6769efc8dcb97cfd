"""Activations: raw scores to probabilities and back; and the names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .decoder import FloatArray

__all__ = ["label", "logit", "sigmoid", "softmax"]


def softmax(logits: FloatArray) -> FloatArray:
    """Return the softmax over the last axis, with the shape and dtype of the input; NaN where a logit is NaN."""
    scores: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the logistic function of each element, with the shape and dtype of the input."""
    # exp(-x) overflows to infinity below about -88, which gives the right answer, 0.
    with np.errstate(over="ignore"):
        scores: FloatArray = np.exp(-logits)
    scores += 1
    return np.reciprocal(scores, out=scores)


def logit(probability: float) -> float:
    """Return a bound below every logit whose sigmoid is greater than ``probability``.

    The bound lies 0.001 under the exact inverse, so that rounding loses no candidate. Candidates above the bound must
    be compared with the threshold again, by their score.
    """
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability)) - 1e-3


def label(labels: Sequence[str] | None, index: int) -> str:
    """Return the name of class ``index``, the background not counted; its number if it has no name."""
    return labels[index] if labels is not None and index < len(labels) else str(index)
