"""Results in words, for people to read."""

from __future__ import annotations

from collections import Counter
from math import sqrt

from ..decode.results import Class, Detection, Embedding, Result

__all__ = ["words"]


def words(result: Result) -> str:
    """Describe a result in one short line.

    >>> words((Detection((0, 0, 1, 1), 0.9, "car"), Detection((0, 0, 1, 1), 0.8, "car")))
    '2 car'
    >>> words((Class("cat", 0.931), Class("dog", 0.05)))
    'cat 0.93'
    """
    if isinstance(result, Embedding):
        norm = sqrt(sum(value * value for value in result.values))
        return f"{len(result.values)} values, norm {norm:.2f}"
    if not result:
        return "nothing"
    first = result[0]
    if isinstance(first, Class):
        return f"{first.label} {first.score:.2f}"
    counts = Counter(item.label for item in result if isinstance(item, Detection))
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())
