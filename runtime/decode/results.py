"""Results of queries: value types, and their form in results.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Class", "Detection", "Embedding", "Result", "result_to_json"]


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the source frame."""
    score: float
    """Confidence, 0 to 1."""
    label: str
    """Name of the class."""


@dataclass(frozen=True, slots=True)
class Class:
    """One class of an image, with its score."""

    label: str
    """Name of the class."""
    score: float
    """Probability, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Feature vector of an image."""

    values: tuple[float, ...]


Result = tuple[Detection, ...] | tuple[Class, ...] | Embedding
"""Result of a query on one frame; detections and classes are sorted by score, best first."""


def result_to_json(result: Result) -> list[Any]:
    """Return the ``result`` field of a line of results.jsonl.

    >>> result_to_json((Detection((1.0, 2.0, 3.0, 4.0), 0.5, "person"),))
    [{'box': [1.0, 2.0, 3.0, 4.0], 'score': 0.5, 'label': 'person'}]
    """
    if isinstance(result, Embedding):
        return [round(value, 6) for value in result.values]
    return [_item(item) for item in result]


def _item(item: Detection | Class) -> dict[str, Any]:
    score = round(item.score, 4)
    if isinstance(item, Detection):
        return {"box": [round(edge, 1) for edge in item.box], "score": score, "label": item.label}
    return {"label": item.label, "score": score}
