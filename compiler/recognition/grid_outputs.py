"""Recognition of YOLO-style outputs: one row per candidate box, with scores and perhaps a mask or keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import GridDecode, YoloxDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_near_cells, are_scores

__all__ = ["recognise_grid", "recognise_queries", "recognise_yolox"]

_LETTERBOX = {"color": "rgb", "scale": 1 / 255, "fit": "letterbox-center", "pad": 114 / 255}
"""Input settings that YOLOv5 to YOLO11 expect."""
_YOLOX_INPUT = {"color": "bgr", "scale": 1.0, "fit": "letterbox", "pad": 114.0, "rounding": "down"}
"""Input settings that YOLOX expects: pixels from 0 to 255."""
_LEVELS = 3
"""Minimum number of feature levels of a YOLOX or YOLOv6."""
_PROTOTYPE_STRIDE = 4
"""Input pixels per value of a mask prototype, in all YOLOs."""
_POSE_VALUES = 3
"""Number of values per keypoint where the model's file does not say: x, y and a score."""


def recognise_grid(found: Evidence) -> Recognised | None:
    """Recognise a YOLO whose candidate boxes are decoded: YOLOv5, v6 and v7 with an objectness, v8 and 11 without.

    The number of boxes tells these families apart: YOLOv5 and YOLOv7 have three per grid cell, the others one.
    """
    for output in found.of_rank(3):
        _, rows, columns = output.shape
        if found.strides_of(columns) is not None or (found.called("yolov8", "yolo11") and rows < columns):
            return _grid(found, output, output.values[0].T, transposed=True, objectness=False)
        if found.strides_of(rows, kinds=3) is not None or found.called("yolov5", "yolov7"):
            return _grid(found, output, output.values[0], transposed=False, objectness=True)
        strides = found.strides_of(rows)
        if (
            strides is None
            or len(strides) < _LEVELS
            or columns < 6
            or _has_partner(found, output)
            or not (found.called("yolov6") or are_near_cells(found, output.values[0], strides))
        ):
            continue
        values = output.values[0]
        # YOLOv6 writes an objectness of 1 everywhere. Otherwise this is a YOLOX that was exported with its decoder.
        own = {} if bool((values[:, 4] == 1).all()) else {"input": _YOLOX_INPUT}
        return _grid(found, output, values, transposed=False, objectness=True, **own)
    return None


def recognise_queries(found: Evidence) -> Recognised | None:
    """Recognise Ultralytics' RT-DETR by ``[N, Q, 4 + C]``: boxes of Q object queries as fractions of the input."""
    for output in found.of_rank(3):
        values = output.values[0]
        classes = values.shape[1] - 4
        if classes < 1 or values.shape[0] > 1000 or found.metadata.end_to_end or not values.any():
            continue
        if not are_scores(values):
            continue
        fits = found.names is not None and classes == len(found.names)
        if fits or found.called("rt-detr-ultralytics", "rt-detr"):
            decode = GridDecode(
                output=output.name, transposed=False, objectness=False, normalized=True, nms=False, classes=classes
            )
            return Recognised(decode, {"color": "rgb", "scale": 1 / 255, "fit": "stretch"})
    return None


def recognise_yolox(found: Evidence) -> Recognised | None:
    """Recognise YOLOX by ``[N, A, 5 + C]``: A candidate boxes that are relative to their grid cells."""
    for output in found.of_rank(3):
        strides = found.strides_of(output.shape[1])
        if strides is None or len(strides) < _LEVELS or output.shape[2] < 6 or not are_scores(output.values[0][:, 4:]):
            continue
        if _has_partner(found, output):
            continue
        if found.called("yolox") or not are_near_cells(found, output.values[0], strides):
            return Recognised(
                YoloxDecode(output=output.name, strides=strides, classes=output.shape[2] - 5), _YOLOX_INPUT
            )
    return None


def _grid(
    found: Evidence,
    output: MeasuredOutput,
    rows: NDArray[Any],
    *,
    transposed: bool,
    objectness: bool,
    input: dict[str, Any] = _LETTERBOX,  # noqa: A002 - the field's name everywhere
) -> Recognised | None:
    """Return the decoder for an output of candidate boxes, with its columns split into classes, mask and keypoints.

    None if no column is left for a class.

    Args:
        found: all evidence about the model.
        output: output with one row, or one column, per candidate box.
        rows: values of the output as ``[A, columns]``, one row per candidate box.
        transposed: whether the output is ``[N, columns, A]``.
        objectness: whether the column after the box is an objectness.
        input: input settings that such models expect.
    """
    first = 4 + objectness
    rest = rows.shape[1] - first
    prototypes = _prototypes(found, rest)
    masks = prototypes.shape[1] if prototypes is not None else 0
    keypoints, per_point = _keypoints(found, rest)
    classes = rest - masks - keypoints * per_point
    if classes < 1:
        return None
    scores = rows[:, 4 : first + classes]
    decode = GridDecode(
        output=output.name,
        transposed=transposed,
        objectness=objectness,
        normalized=bool(np.abs(rows[:, :4]).max(initial=0) <= 2),
        activation="none" if are_scores(scores) else "sigmoid",
        classes=classes,
        masks=masks,
        # For boxes alone, masks need not be drawn: the columns are skipped.
        prototypes=prototypes.name if prototypes is not None and found.task == "segmentation" else None,
        keypoints=keypoints,
        keypoint_values=per_point,
    )
    fit = found.metadata.fit
    return Recognised(decode, input if fit is None else {**input, "fit": fit})


def _has_partner(found: Evidence, output: MeasuredOutput) -> bool:
    """Return whether another output has as many rows as ``output``: the two may be one detector's boxes and scores."""
    return any(other is not output and other.shape[1] == output.shape[1] for other in found.of_rank(3))


def _prototypes(found: Evidence, rest: int) -> MeasuredOutput | None:
    """Return the output with mask prototypes ``[N, masks, h, w]``; None if no candidate box has mask coefficients.

    Prototypes have one value per four pixels of the input. Modules may return feature levels of other sizes too.
    """
    size = tuple(-(-side // _PROTOTYPE_STRIDE) for side in found.size)
    for output in found.of_rank(4):
        if output.shape[1] < rest and output.shape[2:] == size and found.metadata.task in (None, "segmentation"):
            return output
    return None


def _keypoints(found: Evidence, rest: int) -> tuple[int, int]:
    """Return the number of keypoints per candidate box, and the number of values per keypoint."""
    if found.metadata.keypoints is not None:
        return found.metadata.keypoints
    if found.task != "pose":
        return 0, _POSE_VALUES
    classes = len(found.names) if found.names is not None else 1
    return max(0, rest - classes) // _POSE_VALUES, _POSE_VALUES
