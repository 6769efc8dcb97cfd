"""Judgements for tests that do not care how a model was judged."""

from __future__ import annotations

from gemel.merging.judging.intervals import Interval
from gemel.merging.judging.judgement import Judgement


def judgement(relative: float, low: float | None = None, original: float = 1.0) -> Judgement:
    """Return a judgement of 100 images.

    Args:
        relative: accuracy divided by the original model's.
        low: lower end of the relative accuracy; the relative accuracy itself if None.
        original: accuracy of the original model.
    """
    low = relative if low is None else low
    return Judgement(relative * original, original, Interval(100, relative, low, max(relative, 1.0), 1.0))
