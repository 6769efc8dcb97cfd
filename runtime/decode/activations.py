"""Activations (softmax, sigmoid, logit) that turn a model's raw scores into probabilities, and the names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .decoder import FloatArray

__all__ = ["label", "logit", "sigmoid", "softmax"]


def softmax(logits: FloatArray) -> FloatArray:
    """Return the softmax of logits over their last axis, in their shape and dtype; NaN where a logit is NaN."""
    scores: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the sigmoid (logistic function) of each logit, in the shape and dtype of the logits."""
    # exp(-x) overflows to infinity below about -88, which gives the right answer, 0.
    with np.errstate(over="ignore"):
        scores: FloatArray = np.exp(-logits)
    scores += 1
    return np.reciprocal(scores, out=scores)


def logit(probability: float) -> float:
    """Return a lower bound of all logits whose sigmoid is greater than ``probability``.

    The bound is the inverse of the sigmoid less 0.001, so that rounding loses no candidate. Candidates above the bound
    must be compared with the probability again after the sigmoid.
    """
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability)) - 1e-3


def label(labels: Sequence[str] | None, index: int) -> str:
    """Return the name of the class ``index`` (the background not counted), or the index as text if it has no name."""
    return labels[index] if labels is not None and index < len(labels) else str(index)
