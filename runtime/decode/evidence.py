"""Evidence: what each image says about a query's answers, from which the accuracy on any resample of images follows.

A bootstrap draws images with replacement. Its draws are weights: how often each image was drawn. So everything that
an accuracy needs is kept per image, and the accuracies of all draws are computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageEvidence", "Matches", "PrecisionEvidence", "Ratios", "accuracy_of", "mean_of"]

_Array = NDArray[np.float64]
_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision of a detector, and averages it."""
_MOST_VALUES = 1 << 22
"""Maximum number of values of one temporary array when the accuracies of many draws are computed."""


class ImageEvidence(Protocol):
    """Evidence of N images about the answers of one model."""

    def __len__(self) -> int: ...

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether each image shows something to judge by, ``[N]``: an object, a text or a class."""
        ...

    def accuracies(self, weights: _Array) -> _Array:
        """Return the accuracy for each of R draws, ``[R]``, from 0 to 1; 0 for a draw that shows nothing to judge by.

        Args:
            weights: how often each image was drawn, ``[R, N]``.
        """
        ...


def accuracy_of(evidence: ImageEvidence) -> float:
    """Return the accuracy on all images of the evidence, each counted once."""
    return float(evidence.accuracies(np.ones((1, len(evidence))))[0])


@dataclass(frozen=True)
class Ratios:
    """Evidence of measures that are sums over images divided by other sums: means, F1, and the IoU of classes."""

    right: _Array
    """Numerator of each image and each of K columns, ``[N, K]``. A measure of one column has ``K = 1``."""
    total: _Array
    """Denominator of each image and column, ``[N, K]``; 0 where an image says nothing about a column."""

    def __len__(self) -> int:
        return len(self.right)

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether an image adds to any denominator, ``[N]``."""
        found: NDArray[np.bool_] = (self.total > 0).sum(1) > 0
        return found

    def accuracies(self, weights: _Array) -> _Array:
        """Return the mean of the columns' ratios for each draw, ``[R]``, limited to the range from 0 to 1."""
        right, total = weights @ self.right, weights @ self.total
        ratios = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        found: _Array = np.clip(ratios.sum(1) / np.maximum((total > 0).sum(1), 1), 0, 1)
        return found


def mean_of(values: Sequence[float] | NDArray[Any]) -> Ratios:
    """Return the evidence of a measure that is the mean of one value per image. Not-a-number counts as 0."""
    column = np.nan_to_num(np.asarray(values, np.float64)).reshape(-1, 1)
    return Ratios(column, np.ones_like(column))


@dataclass(frozen=True)
class Matches:
    """Detections of one label in N images, best score first, each with whether it matches a true object."""

    image: NDArray[np.int64]
    """Image of each detection, ``[D]``."""
    hit: NDArray[np.bool_]
    """Whether each detection matches a true object, ``[D]``."""
    objects: _Array
    """Number of true objects of the label in each image, ``[N]``."""


@dataclass(frozen=True)
class PrecisionEvidence:
    """Evidence of mAP@50: matches per label. A match depends on one image only, so images can be drawn freely."""

    labels: tuple[Matches, ...]
    """Matches of each label of the truth; at least one label."""
    by_count: bool
    """Whether a label counts in proportion to its number of objects; otherwise all labels count alike."""

    def __len__(self) -> int:
        return len(self.labels[0].objects)

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether an image shows a true object, ``[N]``."""
        found: NDArray[np.bool_] = np.stack([each.objects for each in self.labels]).sum(0) > 0
        return found

    def accuracies(self, weights: _Array) -> _Array:
        """Return mAP@50 for each draw, ``[R]``, averaged over the labels that the draw shows."""
        widest = max(len(self), *(len(each.image) for each in self.labels), len(_RECALLS))
        rows = max(1, _MOST_VALUES // widest)
        return np.concatenate([self._some(weights[first : first + rows]) for first in range(0, len(weights), rows)])

    def _some(self, weights: _Array) -> _Array:
        """Return mAP@50 for a few draws, ``[R]``, so few that all temporary arrays fit in memory."""
        objects = np.stack([weights @ each.objects for each in self.labels], 1)
        parts = np.stack([_average_precision(each, weights) for each in self.labels], 1)
        shares = objects if self.by_count else (objects > 0).astype(np.float64)
        found: _Array = (parts * shares).sum(1) / np.maximum(shares.sum(1), 1e-12)
        return found


def _average_precision(matches: Matches, weights: _Array) -> _Array:
    """Return the average precision of one label for each draw, ``[R]``: the mean of the precision at 101 recalls.

    The precision at a recall is the highest precision at that recall or a higher one, as in COCO's evaluation. It is
    reached at a detection that matches an object, so only these are looked at.
    """
    drawn = weights[:, matches.image]
    objects = weights @ matches.objects
    reported = np.cumsum(drawn, 1)[:, matches.hit]
    hits = np.cumsum(drawn[:, matches.hit], 1)
    count = hits.shape[1]
    if not count:
        return np.zeros(len(weights))
    precision = hits / np.maximum(reported, 1e-12)
    highest = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    # One search for all draws: recalls are at most 1, so a step of 2 keeps the draws apart.
    steps = 2.0 * np.arange(len(weights))[:, None]
    recalls = hits / np.maximum(objects, 1e-12)[:, None]
    places = np.searchsorted((recalls + steps).ravel(), (_RECALLS + steps).ravel()).reshape(len(weights), -1)
    places -= count * np.arange(len(weights))[:, None]
    padded = np.concatenate([highest, np.zeros((len(weights), 1))], 1)
    found: _Array = np.take_along_axis(padded, np.minimum(places, count), 1).mean(1)
    return found
