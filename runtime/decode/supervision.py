"""Conversion of results into the types of the package supervision, which tracks, counts and draws objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError
from .results import Detection, Mask, Result, Segmentation

__all__ = ["results_to_detections", "results_to_keypoints"]


def results_to_detections(result: Result, labels: Sequence[str] | None = None) -> Any:
    """Return a query's result as supervision's ``Detections``.

    A row is an object, or a class of a semantically segmented frame with the box around its pixels and score 1. The
    data field ``class_name`` holds the labels. The data field ``keypoints`` holds the key points or landmarks,
    ``[rows, points, 3]`` (x, y, score), if all objects have the same number of points.

    Args:
        result: result of a detection, pose or segmentation query.
        labels: labels in the order of their class numbers, for objects that have a label but no number. If left out,
            these labels are numbered from 0, in the alphabetical order of the labels in the result.

    Raises:
        MissingExtraError: supervision is not installed.
        TypeError: the result is of another task.
    """
    rows = _rows(result)
    supervision = _import_supervision("gemel.results_to_detections")
    boxes = np.array([row.box for row in rows], np.float32).reshape(-1, 4)
    masks = [row.mask.array() for row in rows if row.mask is not None]
    names = np.array([row.label for row in rows], str)
    data: dict[str, Any] = {"class_name": names}
    if (points := _points(rows)) is not None:
        data["keypoints"] = points
    return supervision.Detections(
        xyxy=boxes,
        mask=np.stack(masks) if masks and len(masks) == len(rows) else None,
        confidence=np.array([row.score for row in rows], np.float32),
        class_id=_numbers(rows, labels),
        data=data,
    )


def results_to_keypoints(result: Result, labels: Sequence[str] | None = None) -> Any:
    """Return the key points of a query's result as supervision's ``KeyPoints``, a row for each object.

    Args:
        result: result of a pose query, or of a detection query with landmarks.
        labels: labels in the order of their class numbers; see :func:`results_to_detections`.

    Raises:
        MissingExtraError: supervision is not installed.
        TypeError: the result is of another task, or its objects have different numbers of points.
    """
    rows = _rows(result)
    supervision = _import_supervision("gemel.results_to_keypoints")
    points = _points(rows)
    if points is None:
        raise TypeError("objects of a result must have as many key points each")
    return supervision.KeyPoints(
        xy=points[..., :2],
        keypoint_confidence=points[..., 2],
        detection_confidence=np.array([row.score for row in rows], np.float32),
        class_id=_numbers(rows, labels),
        data={"class_name": np.array([row.label for row in rows], str)},
    )


def _import_supervision(what: str) -> Any:
    """Return the package supervision, which is imported here because few programs need it and it is large."""
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise MissingExtraError(what, "supervision") from error
    return supervision


def _rows(result: Result) -> list[Detection]:
    """Return the objects of a result; classes of a segmented frame become objects with the boxes around them."""
    if isinstance(result, Segmentation):
        return [
            Detection(_box(each.mask), 1.0, each.label, each.class_id, mask=each.mask)
            for each in result.classes
            if each.mask.area()
        ]
    if not isinstance(result, tuple) or not all(isinstance(item, Detection) for item in result):
        raise TypeError("a result of a detection, pose or segmentation query is expected")
    return [item for item in result if isinstance(item, Detection)]


def _box(mask: Mask) -> tuple[float, float, float, float]:
    """Return the smallest box (x1, y1, x2, y2) around the pixels of a mask that is not empty."""
    left, part = mask.columns()
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    return float(left + columns[0]), float(rows[0]), float(left + columns[-1] + 1), float(rows[-1] + 1)


def _points(rows: Sequence[Detection]) -> NDArray[np.float32] | None:
    """Return key points as ``[rows, points, 3]``; landmarks get score 1. None if the numbers of points differ."""
    points = [row.keypoints or tuple((x, y, 1.0) for x, y in row.landmarks) for row in rows]
    counts = {len(each) for each in points}
    if len(counts) > 1:
        return None
    return np.array(points, np.float32).reshape(len(rows), counts.pop() if counts else 0, 3)


def _numbers(rows: Sequence[Detection], labels: Sequence[str] | None) -> NDArray[np.int_]:
    """Return the class number of each object; if an object has no number, return the number of its label."""
    names = list(labels) if labels is not None else sorted({row.label for row in rows if row.class_id < 0})
    place = {name: number for number, name in reversed(list(enumerate(names)))}
    return np.array([row.class_id if row.class_id >= 0 else place.get(row.label, -1) for row in rows], int)
