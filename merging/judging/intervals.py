"""Relative accuracy with its interval: a paired bootstrap over images.

The same draws of images give the accuracies of the merged and of the original model, so what is hard about an image
cancels out. Each end of the interval is a one-sided bound at 95 %: the relative accuracy on endlessly many images like
these lies below the lower end in one case of twenty.

A bootstrap of images that are all answered right never draws a wrong one, and would be as sure of ten images as of
ten thousand. So the lower end is that of a sample with one image more, on which the merged model fails. Without a
failure among n images, it becomes 1 - 3 / (n + 1), as the exact binomial bound and the "rule of three" have it
(Hanley and Lippman-Hand 1983). A lower end of 0.95 takes 60 images at least, one of 0.99 takes 300.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.decode.evidence import ImageEvidence, accuracy_of

__all__ = ["SAME", "Interval", "images_for", "relative_interval"]

_DRAWS = 1000
"""Number of draws of a bootstrap."""
_TAIL = 0.05
"""Fraction of the draws below the lower end of an interval, and above the upper end."""
_MOST_VALUES = 1 << 22
"""Maximum number of weights that are drawn at once."""


@dataclass(frozen=True)
class Interval:
    """Relative accuracy: accuracy of a model divided by that of the original model, on the same images."""

    images: int
    """Number of images that show something to judge by."""
    value: float
    """Relative accuracy on all images."""
    low: float
    """Lower end of the relative accuracy, a one-sided bound at 95 %."""
    high: float
    """Upper end of the relative accuracy, a one-sided bound at 95 %."""
    best: float
    """Lower end that a model with the original's answers would get. Below a target, the images are too few for it."""

    def __str__(self) -> str:
        """Return the relative accuracy with its interval and number of images, as text."""
        return (
            f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.images})" if self.images else "1 (unchanged)"
        )


SAME = Interval(0, 1.0, 1.0, 1.0, 1.0)
"""Relative accuracy of a model with the original's weights, which needs no images."""


def relative_interval(merged: ImageEvidence, original: ImageEvidence, seed: int = 0) -> Interval:
    """Return the relative accuracy of a merged model, with its interval.

    Args:
        merged: evidence about the merged model.
        original: evidence about the original model, of the same images.
        seed: seed of the draws. Equal seeds and numbers of images draw the same images.
    """
    counted = merged.counted | original.counted
    ratios, shares = [], []
    for weights, failures in _draws(len(merged), seed):
        ours, theirs = merged.accuracies(weights), original.accuracies(weights)
        # A draw on which the original finds nothing right says nothing for the merged model.
        ratios.append(np.divide(ours, theirs, out=np.zeros_like(ours), where=theirs > 0))
        known = weights[:, counted].sum(1)
        shares.append(known / np.maximum(known + failures, 1.0))
    ratio, share = np.concatenate(ratios), np.concatenate(shares)
    was = accuracy_of(original)
    value = accuracy_of(merged) / was if was > 0 else 0.0
    return Interval(
        int(counted.sum()),
        value,
        min(value, float(np.quantile(ratio * share, _TAIL))),
        max(value, float(np.quantile(ratio, 1 - _TAIL))),
        float(np.quantile(share, _TAIL)),
    )


def images_for(target: float) -> int | None:
    """Return how many images without a failure bring the lower end of an interval to a target; None for a target of 1.

    >>> images_for(0.95), images_for(0.99), images_for(1.0)
    (60, 300, None)
    """
    return None if target >= 1 else max(2, round(3 / (1 - target)))


def _draws(images: int, seed: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield draws of a bootstrap: how often each image was drawn, ``[R, N]``, and how often the failing extra image,
    ``[R]``."""
    rng = np.random.default_rng(seed)
    units = images + 1
    rows = max(1, _MOST_VALUES // units)
    for first in range(0, _DRAWS, rows):
        count = min(rows, _DRAWS - first)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)
        yield weights[:, :-1], weights[:, -1]
