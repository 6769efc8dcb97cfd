"""Recognition of NanoDet and PicoDet: scores, and distances to the sides of a box as distributions over bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import GflDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_scores
from .known_inputs import IMAGENET, MMDETECTION

__all__ = ["recognise_gfl"]

_BINS = 8
"""Number of bins in which NanoDet and PicoDet give the distance to each side of a box."""
_COCO_CLASSES = 80


def recognise_gfl(found: Evidence) -> Recognised | None:
    """Recognise a NanoDet or PicoDet.

    The model has one joint output ``[N, A, C + 4 * bins]``, or two outputs per feature level: scores with C columns and
    distances with ``4 * bins`` columns.
    """
    return _joint(found) or _levels(found)


def _joint(found: Evidence) -> Recognised | None:
    for output in found.of_rank(3):
        _, places, columns = output.shape
        strides = found.strides_of(places)
        if strides is None or columns <= 4 * _BINS:
            continue
        bins = _bins(found, columns)
        classes = columns - 4 * bins
        scores, distances = output.values[0][:, :classes], output.values[0][:, classes:]
        if not are_scores(scores) and not found.called("nanodet"):
            continue
        if are_scores(distances):  # the columns are class scores, not distances
            continue
        plus = len(strides) == 4
        decode = GflDecode(
            scores=(output.name,),
            strides=strides,
            reg_max=bins - 1,
            activation="none" if are_scores(scores) else "sigmoid",
            cell_offset=0.0 if plus else 0.5,
            classes=classes,
        )
        return Recognised(decode, {**MMDETECTION, "fit": "stretch"})
    return None


def _bins(found: Evidence, columns: int) -> int:
    """Return the number of bins per side of a box, given the number of columns of a joint output."""
    classes = len(found.names) if found.names is not None else _COCO_CLASSES
    bins, rest = divmod(columns - classes, 4)
    return bins if rest == 0 and bins > 1 else _BINS


def _levels(found: Evidence) -> Recognised | None:
    """Recognise a NanoDet or PicoDet that has two outputs, scores and distances, for each feature level."""
    by_cells: dict[int, list[tuple[MeasuredOutput, NDArray[Any]]]] = {}
    for output in (*found.of_rank(3), *found.of_rank(4)):
        rows = output.values[0] if len(output.shape) == 3 else output.values[0].reshape(output.shape[1], -1).T
        by_cells.setdefault(rows.shape[0], []).append((output, rows))
    for strides in ((8, 16, 32, 64), (8, 16, 32)):
        levels = [by_cells.get(found.cells(stride), []) for stride in strides]
        if len(found.outputs) != 2 * len(strides) or any(len(level) != 2 for level in levels):
            continue
        # In the exports, the scores of all levels come before the distances.
        columns = {tuple(rows.shape[1] for _, rows in level) for level in levels}
        if len(columns) != 1:
            continue
        classes, distances = columns.pop()
        if distances % 4 or distances < 8:
            continue
        scores = np.concatenate([level[0][1] for level in levels])
        decode = GflDecode(
            scores=tuple(level[0][0].name for level in levels),
            distances=tuple(level[1][0].name for level in levels),
            strides=strides,
            reg_max=distances // 4 - 1,
            activation="none" if are_scores(scores) else "sigmoid",
            classes=classes,
        )
        return Recognised(decode, IMAGENET)
    return None
