"""From raw scores to probabilities, and the names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import FloatArray

__all__ = ["label", "logit", "sigmoid", "softmax"]


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over the last axis; shape and dtype stay."""
    scores: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: FloatArray) -> FloatArray:
    """Logistic function of each element; shape and dtype stay."""
    # exp(-x) overflows to infinity below about -88, which gives the right answer, 0.
    with np.errstate(over="ignore"):
        scores: FloatArray = np.exp(-logits)
    scores += 1
    return np.reciprocal(scores, out=scores)


def logit(probability: float) -> float:
    """A bound below every logit whose sigmoid is greater than ``probability``.

    It lies a little under the exact inverse, so that rounding cannot lose a candidate: those found with it are
    compared again by their score.
    """
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability)) - 1e-3


def label(labels: Sequence[str] | None, index: int) -> str:
    """Name of class ``index``, the background not counted; its number where it has no name."""
    return labels[index] if labels is not None and index < len(labels) else str(index)
