"""Descriptions of queries' results in words, for the legend on videos and the live table."""

from __future__ import annotations

from collections import Counter

from ..decode.results import Class, Detection, Embedding, Mask, Raw, Result, Segmentation, Text

__all__ = ["percent", "words"]

_MOST = 3
"""Maximum number of classes or outputs that a result's description names."""
_LIKELY = 0.5
"""Minimum score of an image's second and further classes to be named. Of classes that exclude each other, only one can
have a higher score."""


def words(result: Result) -> str:
    """Describe a query's result in one short line.

    >>> words((Detection((0, 0, 1, 1), 0.9, "car"), Detection((0, 0, 1, 1), 0.8, "car")))
    '2 car'
    >>> words((Class("cat", 0.931), Class("dog", 0.05)))
    'cat 0.93'
    >>> words((Class("rain", 0.931), Class("night", 0.72), Class("snow", 0.05)))
    'rain 0.93, night 0.72'
    >>> words(Text("GO 4711", 0.98))
    '"GO 4711" 0.98'
    """
    if isinstance(result, Embedding):
        return "embedding"
    if isinstance(result, Text):
        return f'"{result.text}" {result.score:.2f}' if result.text else "no text"
    if isinstance(result, Raw):
        return _some([f"{name} {_shape(values.shape)}" for name, values in result.outputs.items()])
    if isinstance(result, Segmentation):
        largest = sorted(result.classes, key=lambda each: -each.mask.area())
        return _some([f"{each.label} {percent(each.mask)}" for each in largest])
    classes = [item for item in result if isinstance(item, Class)]
    if classes:
        likely = [item for item in classes[1:] if item.score >= _LIKELY]
        return _some([f"{item.label} {item.score:.2f}" for item in (classes[0], *likely)])
    counts = Counter(item.label for item in result if isinstance(item, Detection))
    return ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "nothing"


def percent(mask: Mask) -> str:
    """Return the percentage of its frame that a mask covers, as text.

    >>> percent(Mask((2, 4), "224"))
    '25 %'
    """
    part = 100 * mask.area() / max(1, mask.size[0] * mask.size[1])
    return "< 1 %" if part < 1 else f"{part:.0f} %"


def _some(parts: list[str]) -> str:
    """Join the first three of several texts, and add how many more there are."""
    more = f", + {len(parts) - _MOST}" if len(parts) > _MOST else ""
    return ", ".join(parts[:_MOST]) + more or "nothing"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
