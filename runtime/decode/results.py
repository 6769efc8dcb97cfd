"""What queries answer: value types, and their form in results.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Class", "Detection", "Embedding", "Result", "result_to_json"]


@dataclass(frozen=True, slots=True)
class Detection:
    """An object: ``box`` is x1, y1, x2, y2 in pixels of the source frame."""

    box: tuple[float, float, float, float]
    score: float
    label: str


@dataclass(frozen=True, slots=True)
class Class:
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Embedding:
    values: tuple[float, ...]


Result = tuple[Detection, ...] | tuple[Class, ...] | Embedding


def result_to_json(result: Result) -> list[Any]:
    """The ``result`` field of a line of results.jsonl.

    >>> to_json((Detection((1.0, 2.0, 3.0, 4.0), 0.5, "person"),))
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
