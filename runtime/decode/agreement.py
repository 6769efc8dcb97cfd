"""Agreement of answers with a reference, by the measures that merging judges models by; without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .average_precision import mean_average_precision
from .results import Detection, Embedding, Result

__all__ = ["LEAST_SPREAD", "SURE", "agreement"]

SURE = 0.3
"""Score from which a reference's detection counts as true; detections that score less are mostly mistakes."""
LEAST_SPREAD = 1e-3
"""Least mean distance of a reference's embeddings from their mean, relative to their mean length.

Below this, frames differ by rounding only.
"""

TaskName = Literal["classification", "detection", "embedding"]
"""Task of a query."""


def agreement(task: TaskName, answers: Sequence[Result | None], reference: Sequence[Result]) -> float | None:
    """Return the accuracy of answers against a reference, 0 to 1. A missing answer counts as wrong.

    - classification: share of the frames whose best class is the same.
    - embedding: mean cosine between answer and reference, after subtracting the reference's mean; 0 if negative.
    - detection: mAP@50. The truth are the reference's detections that score 0.3 or more; classes are weighted by
      their number of objects.

    Args:
        task: task of the query.
        answers: one result a frame; None for a frame without an answer in time.
        reference: the right results, for the same frames.

    Returns:
        None if the reference has nothing to judge by: no frame, no object, or the same embedding for all frames.
    """
    if not reference:
        return None
    if task == "classification":
        pairs = zip(answers, reference, strict=True)
        return sum(answer is not None and _first(answer) == _first(right) for answer, right in pairs) / len(reference)
    if task == "embedding":
        return _cosine(answers, reference)
    return _precision(answers, reference)


def _first(result: Result) -> str | None:
    """Return the label of the first class or detection; None if there is none."""
    return result[0].label if isinstance(result, tuple) and result else None


def _cosine(answers: Sequence[Result | None], reference: Sequence[Result]) -> float | None:
    wanted = np.array([_values(right) for right in reference])
    mean = wanted.mean(0)
    if _lengths(wanted - mean).mean() <= LEAST_SPREAD * _lengths(wanted).mean():
        return None
    # The mean stands for a missing answer: relative to the mean it is zero, so its cosine is 0.
    given = np.array([mean if answer is None else _values(answer) for answer in answers])
    ours, theirs = given - mean, wanted - mean
    product = (ours * theirs).sum(1) / np.maximum(_lengths(ours) * _lengths(theirs), 1e-12)
    # A diverged model answers NaN, which counts as wrong.
    return float(np.clip(np.nan_to_num(product).mean(), 0, 1))


def _values(result: Result) -> tuple[float, ...]:
    assert isinstance(result, Embedding)
    return result.values


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return lengths


def _precision(answers: Sequence[Result | None], reference: Sequence[Result]) -> float | None:
    truth = [[each for each in _detections(right) if each.score >= SURE] for right in reference]
    if not any(truth):
        return None
    return mean_average_precision([_detections(answer) for answer in answers], truth, by_count=True)


def _detections(result: Result | None) -> list[Detection]:
    return [each for each in result if isinstance(each, Detection)] if isinstance(result, tuple) else []
