"""Recognition of face detectors with landmarks: SCRFD, RetinaFace, YuNet, CenterFace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import CenterFaceDecode, FaceGridDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_scores, sum_to_one

__all__ = ["recognise_centerface", "recognise_retinaface", "recognise_scrfd", "recognise_yunet"]

_CENTERFACE_CHANNELS = (1, 2, 2, 10)
"""Number of channels of each of CenterFace's outputs: heatmap, scale, offset, landmarks."""
_SCRFD_INPUT = {
    "color": "rgb",
    "scale": 1.0,
    "mean": (127.5,) * 3,
    "std": (128.0,) * 3,
    "fit": "letterbox",
    "pad": -127.5 / 128,
    "rounding": "down",
}
_RETINAFACE_INPUT = {"color": "bgr", "scale": 1.0, "mean": (104.0, 117.0, 123.0), "std": (1.0,) * 3}
_PLATE_VALUES = 8
"""Number of landmark values per candidate box of a RetinaFace for licence plates: x and y of four corners."""
_PLATE_SIZES = ((24, 48), (96, 192), (384, 768))
"""Sides of the priors of the RetinaFace for licence plates (License-Plate-Detector, trained on CCPD), for each
level."""
_YUNET_INPUT = {"color": "bgr", "scale": 1.0}


def recognise_centerface(found: Evidence) -> Recognised | None:
    """Recognise CenterFace by the channels of its four outputs."""
    channels = tuple(output.shape[1] if len(output.shape) == 4 else None for output in found.outputs)
    if channels != _CENTERFACE_CHANNELS:
        return None
    heads = dict(zip(("heatmap", "scale", "offset"), (output.name for output in found.outputs), strict=False))
    decode = CenterFaceDecode(classes=1, score_threshold=0.2, nms_threshold=0.3, **heads)
    return Recognised(decode, {"scale": 1.0})


def recognise_scrfd(found: Evidence) -> Recognised | None:
    """Recognise SCRFD by its outputs per feature level: scores ``[A, 1]``, distances ``[A, 4]`` and, if it has them,
    landmarks ``[A, 2P]``."""
    groups = _by_columns(found)
    points = [columns for columns in groups if columns not in (1, 4)]
    if not {1, 4} <= groups.keys() or len(points) > 1 or sum(map(len, groups.values())) != len(found.outputs):
        return None
    for strides in ((8, 16, 32), (8, 16, 32, 64, 128)):
        for kinds in (2, 1):
            wanted = [kinds * found.cells(stride) for stride in strides]
            if any([_rows(output) for output in group] != wanted for group in groups.values()):
                continue
            scores = np.concatenate([_flat(output) for output in groups[1]])
            decode = FaceGridDecode(
                style="scrfd",
                scores=_names(groups[1]),
                boxes=_names(groups[4]),
                points=_names(groups[points[0]]) if points else (),
                strides=strides,
                kinds=kinds,
                activation="none" if are_scores(scores) else "sigmoid",
                landmarks=points[0] // 2 if points else 5,
            )
            return Recognised(decode, _SCRFD_INPUT)
    return None


def recognise_retinaface(found: Evidence) -> Recognised | None:
    """Recognise RetinaFace by boxes ``[N, A, 4]``, scores ``[N, A, 2]`` and landmarks ``[N, A, 2P]``.

    There are two candidate boxes per cell.
    """
    groups = _by_columns(found)
    points = [columns for columns in groups if columns not in (2, 4)]
    if len(found.outputs) != 3 or not {2, 4} <= groups.keys() or len(points) != 1 or points[0] % 2:
        return None
    ((scores,), (boxes,), (landmarks,)) = (groups[2], groups[4], groups[points[0]])
    places = {_rows(output) for output in (scores, boxes, landmarks)}
    if places != {2 * sum(map(found.cells, (8, 16, 32)))}:
        return None
    decode = FaceGridDecode(
        style="retinaface",
        scores=(scores.name,),
        boxes=(boxes.name,),
        points=(landmarks.name,),
        activation="none" if sum_to_one(scores.values) else "softmax",
        landmarks=points[0] // 2,
        **({"min_sizes": _PLATE_SIZES} if points[0] == _PLATE_VALUES else {}),
    )
    return Recognised(decode, _RETINAFACE_INPUT)


def recognise_yunet(found: Evidence) -> Recognised | None:
    """Recognise YuNet by its outputs per feature level.

    These are class scores ``[A, 1]``, objectness ``[A, 1]``, boxes ``[A, 4]`` and landmarks ``[A, 10]``.
    """
    groups = _by_columns(found)
    strides = (8, 16, 32)
    if {columns: len(group) for columns, group in groups.items()} != {1: 6, 4: 3, 10: 3}:
        return None
    wanted = [found.cells(stride) for stride in strides]
    ones = groups[1]
    named = [output for output in ones if "cls" in output.name.lower()]
    # Sorted by size, each level has its class scores and its objectness next to each other.
    scores = named if len(named) == 3 else ones[::2]
    objectness = [output for output in ones if output not in scores]
    parts = (scores, objectness, groups[4], groups[10])
    if any([_rows(output) for output in part] != wanted for part in parts):
        return None
    values = np.concatenate([_flat(output) for output in ones])
    decode = FaceGridDecode(
        style="yunet",
        scores=_names(scores),
        objectness=_names(objectness),
        boxes=_names(groups[4]),
        points=_names(groups[10]),
        strides=strides,
        activation="none" if are_scores(values) else "sigmoid",
    )
    return Recognised(decode, _YUNET_INPUT)


def _by_columns(found: Evidence) -> dict[int, list[MeasuredOutput]]:
    """Group a model's float outputs ``[A, columns]`` or ``[N, A, columns]`` by their number of columns.

    In each group, the output with most rows comes first.
    """
    groups: dict[int, list[MeasuredOutput]] = {}
    for output in found.floats:
        if len(output.shape) in (2, 3) and (len(output.shape) == 2 or output.shape[0] == 1):
            groups.setdefault(output.shape[-1], []).append(output)
    return {columns: sorted(group, key=_rows, reverse=True) for columns, group in groups.items()}


def _rows(output: MeasuredOutput) -> int:
    return output.shape[-2]


def _flat(output: MeasuredOutput) -> NDArray[Any]:
    return output.values.reshape(-1)


def _names(outputs: Sequence[MeasuredOutput]) -> tuple[str, ...]:
    return tuple(output.name for output in outputs)
