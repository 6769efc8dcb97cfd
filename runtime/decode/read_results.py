"""Reader of results in the form that they have in results.jsonl and in samples: the inverse of ``result_to_json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .agreement import TaskName
from .masks import mask_counts
from .results import Class, Detection, Embedding, Mask, Raw, Result, Segmentation, SegmentedClass, Text

__all__ = ["result_from_json"]

_MOST_ITEMS = 100_000
"""Maximum number of objects, classes or values in a result that is read."""


def result_from_json(task: TaskName, value: Any) -> Result:
    """Return the result that a JSON value of the field ``result`` stands for.

    Numbers that JSON does not have (NaN, infinity) were written as null, and are read as NaN.

    Args:
        task: task of the query that gave the result.
        value: decoded JSON value, which may come from anywhere.

    Raises:
        ValueError: the value is no result of this task, or the values of a raw output were too many to be written.

    >>> result_from_json("classification", [{"label": "rain", "score": 0.7}])
    (Class(label='rain', score=0.7, class_id=-1),)
    """
    try:
        if task == "embedding":
            return Embedding(tuple(map(_number, _listed(value))))
        if task == "ocr":
            return Text(_text(value["text"]), _number(value["score"]))
        if task == "raw":
            return Raw({str(name): _output(name, output) for name, output in dict(value).items()})
        if task == "classification":
            return tuple(map(_class, _listed(value)))
        if isinstance(value, Mapping):
            return _segmentation(value)
        return tuple(_detection(each) for each in _listed(value))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"no result of the task {task}: {type(error).__name__} {error}") from error


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_ITEMS:
        raise ValueError("a list is expected")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is expected")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is expected")
    return value


def _class_id(item: Mapping[str, Any]) -> int:
    return int(item.get("class_id", -1))


def _class(item: Mapping[str, Any]) -> Class:
    return Class(_text(item["label"]), _number(item["score"]), _class_id(item))


def _detection(item: Mapping[str, Any]) -> Detection:
    left, top, right, bottom = map(_number, _listed(item["box"]))
    return Detection(
        (left, top, right, bottom),
        _number(item["score"]),
        _text(item["label"]),
        _class_id(item),
        tuple((x, y) for x, y in (map(_number, point) for point in item.get("landmarks", ()))),
        tuple((x, y, score) for x, y, score in (map(_number, point) for point in item.get("keypoints", ()))),
        _mask(item["mask"]) if "mask" in item else None,
    )


def _mask(item: Mapping[str, Any]) -> Mask:
    height, width = map(int, _listed(item["size"]))
    counts = _text(item["counts"])
    # Damaged masks are refused here, not where they are compared.
    mask_counts(counts, (height, width))
    return Mask((height, width), counts)


def _segmentation(value: Mapping[str, Any]) -> Segmentation:
    height, width = map(int, _listed(value["size"]))
    classes = [
        SegmentedClass(_text(item["label"]), _class_id(item), _mask(item["mask"])) for item in _listed(value["classes"])
    ]
    return Segmentation((height, width), tuple(classes))


def _output(name: str, item: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    if "values" not in item:
        raise ValueError(f"output {name} was too large to be written")
    values = [math.nan if each is None else each for each in _listed(item["values"])]
    kind = np.dtype(_text(item["dtype"]))
    if kind.kind not in "biufU":
        raise ValueError(f"output {name} has the type {kind}")
    found: np.ndarray[Any, Any] = np.array(values, kind)
    return found.reshape(tuple(map(int, _listed(item["shape"]))))
