"""How far answers agree with a reference: the measures that merging judges a model by, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .average_precision import mean_average_precision
from .results import Detection, Embedding, Result

__all__ = ["LEAST_SPREAD", "SURE", "agreement"]

SURE = 0.3
"""Of the reference's detections, those that score less are mostly mistakes: agreeing with them is no merit."""
LEAST_SPREAD = 1e-3
"""Of the reference's embeddings around their mean, relative to their length: below it, what tells frames apart is
rounding."""

TaskName = Literal["classification", "detection", "embedding"]


def agreement(task: TaskName, answers: Sequence[Result | None], reference: Sequence[Result]) -> float | None:
    """Accuracy of answers, 0 to 1, frame by frame against a reference; no answer is wrong.

    - classification: part of the frames with the same first class.
    - embedding: mean cosine, both relative to the mean of the reference; 0 if negative.
    - detection: mAP@50, the truth being the reference's detections that score 0.3 or more; classes count by their
      number of objects.

    Args:
        task: of the query.
        answers: a result a frame, None where there was none in time.
        reference: what is right, for the same frames.

    Returns:
        None where the reference has nothing to judge by: no frame, no object, or the same embedding for all frames.
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
    return result[0].label if isinstance(result, tuple) and result else None


def _cosine(answers: Sequence[Result | None], reference: Sequence[Result]) -> float | None:
    wanted = np.array([_values(right) for right in reference])
    mean = wanted.mean(0)
    if _lengths(wanted - mean).mean() <= LEAST_SPREAD * _lengths(wanted).mean():
        return None
    # Whoever says nothing is at right angles to what is right.
    given = np.array([mean if answer is None else _values(answer) for answer in answers])
    ours, theirs = given - mean, wanted - mean
    product = (ours * theirs).sum(1) / np.maximum(_lengths(ours) * _lengths(theirs), 1e-12)
    # A diverged model answers NaN, which is wrong, too.
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
