"""Score of a query's answer to one frame: how well it agrees with the original model's answer, from 0 to 1.

The measure is the task's own, as merging uses it (:func:`gemel.runtime.decode.agreement.agreement`), on one frame.
Two tasks need more than that. An embedding is compared after subtracting a mean, for which the frames before stand.
And where the original finds nothing, but the answer does, that is a mistake, which the measure of a set counts only
through other frames.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ...runtime.decode.agreement import SURE, TaskName, agreement
from ...runtime.decode.results import Class, Detection, Embedding, Result, Segmentation, Text

__all__ = ["ImageScores"]

_CENTRE = 6
"""Number of frames before whose mean is subtracted from embeddings: enough for a mean that is not one frame's, few
enough that the mean of a new scene is soon known."""
_LEAST_SPREAD = 0.1
"""Least length of an embedding's difference from the mean that counts in full, as a part of the embedding's length.

Frames of a camera at night hardly differ; their small differences must not be amplified. Retraining has the same limit.
"""


class ImageScores:
    """Scores of one query's answers, frame by frame, in the order of the frames.

    Args:
        task: task of the query.
        several: whether the query's model gives an image several classes at once.
    """

    def __init__(self, task: TaskName, several: bool = False) -> None:
        self._task, self._several = task, several
        self._before: deque[NDArray[np.float64]] = deque(maxlen=_CENTRE)

    def score(self, answers: tuple[Result | None, ...], reference: Result) -> list[float] | None:
        """Return the score of each of several answers to one frame, from 0 to 1.

        Args:
            answers: answers to the frame; None for one that cannot be used, which scores 0.
            reference: answer of the original model.

        Returns:
            None if the frame has nothing to judge by: neither the original nor one of the answers finds anything, or
            too few embeddings came before.
        """
        if self._task == "embedding":
            return self._embeddings(answers, reference)
        scores = [self._single(answer, reference) for answer in answers]
        known = [score for score in scores if score is not None]
        return known if len(known) == len(scores) else None

    def _single(self, answer: Result | None, reference: Result) -> float | None:
        found = agreement(self._task, [answer], [reference], multi_label=self._several)
        if found is not None:
            return found
        ghosts = _sure_of(answer)
        return None if ghosts is None else 1 - ghosts

    def _embeddings(self, answers: tuple[Result | None, ...], reference: Result) -> list[float] | None:
        wanted = _vector(reference)
        before = [each for each in self._before if each.shape == wanted.shape]
        self._before.append(wanted)
        if len(before) < _CENTRE:
            return None
        centre = np.mean(before, 0)
        least = max(_LEAST_SPREAD * float(np.linalg.norm(wanted)), 1e-12)
        there = _direction(wanted - centre, least)
        given = [None if answer is None else _vector(answer) for answer in answers]
        return [
            0.0 if each is None or each.shape != wanted.shape else _likeness(each - centre, there, least)
            for each in given
        ]


def _vector(result: Result) -> NDArray[np.float64]:
    return np.array(result.values if isinstance(result, Embedding) else (), np.float64)


def _direction(vector: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = vector / max(float(np.linalg.norm(vector)), least)
    return found


def _likeness(given: NDArray[np.float64], there: NDArray[np.float64], least: float) -> float:
    """Return the cosine of two embeddings' differences from a mean; 0 if it is negative.

    Args:
        given: difference of the answer; with NaN for a model that has diverged.
        there: direction of the original's difference.
        least: length below which a difference counts less.
    """
    if not np.isfinite(given).all():
        return 0.0
    apart = float(((_direction(given, least) - there) ** 2).sum()) / 2
    # The mean of K frames is off by itself: squares of differences are (K + 1) / K times as large as from the true one.
    return max(0.0, 1 - apart * (_CENTRE + 1) / _CENTRE)


def _sure_of(answer: Result | None) -> float | None:
    """Return how sure an answer is that there is something, 0 to 1, where the original found nothing.

    Objects count from the score at which the original's count, so that one that barely reaches it is hardly a mistake.
    None if the answer has nothing either.
    """
    if isinstance(answer, Text):
        return 1.0 if answer.text else None
    if isinstance(answer, Segmentation):
        return 1.0 if answer.classes else None
    if not isinstance(answer, tuple):
        return None
    if any(isinstance(item, Class) for item in answer):
        return 1.0
    scores = [item.score for item in answer if isinstance(item, Detection)]
    best = max(scores, default=0.0)
    return (best - SURE) / (1 - SURE) if best > SURE else None
