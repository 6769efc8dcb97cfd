"""Mean average precision of detections, computed by pycocotools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .results import Detection

__all__ = ["mean_average_precision"]

_OVERLAP = 0.5
"""Intersection over union from which a detection matches an object."""


def mean_average_precision(
    found: Sequence[Sequence[Detection]], truth: Sequence[Sequence[Detection]], *, by_count: bool
) -> float:
    """Return mAP@50: average precision at an intersection over union of 0.5, averaged over the labels in ``truth``.

    Args:
        found: detections of each frame.
        truth: objects of each frame, at least one in all frames together; their scores are ignored.
        by_count: weight labels by their number of objects instead of equally. If the truth comes from a detector, its
            rare labels are often mistakes, and one mistake must not weigh as much as all people.
    """
    counts = Counter(each.label for frame in truth for each in frame)
    # Sorted, as COCOeval sorts categories. Detections with other labels than the truth's are left out.
    labels = {label: number for number, label in enumerate(sorted(counts), 1)}
    results = _annotations(found, labels)
    if not results:
        return 0.0
    # pycocotools prints its progress.
    with redirect_stdout(StringIO()):
        wanted = COCO()
        wanted.dataset = {
            "info": {},  # pycocotools 2.0.9 and 2.0.10 need the key
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": number} for number in labels.values()],
            "annotations": _annotations(truth, labels),
        }
        wanted.createIndex()
        evaluation = COCOeval(wanted, wanted.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([_OVERLAP])
        evaluation.params.maxDets = [max(map(len, found))]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # Axes are [overlaps, recalls, labels, areas, limits]; only recalls and labels have more than one entry.
    # Rounded, because an epsilon against division by zero in COCOeval takes perfect answers to just below 1.
    precision = evaluation.eval["precision"][0, :, :, 0, 0].mean(0).round(9)
    return float(np.average(precision, weights=[counts[label] for label in labels] if by_count else None))


def _annotations(frames: Sequence[Sequence[Detection]], labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return detections as COCO annotations, numbered from 1: pycocotools takes 0 for "no match"."""
    known = [(image, each) for image, frame in enumerate(frames) for each in frame if each.label in labels]
    return [
        _annotation(each, labels[each.label]) | {"id": number, "image_id": image}
        for number, (image, each) in enumerate(known, 1)
    ]


def _annotation(each: Detection, label: int) -> dict[str, Any]:
    left, top, right, bottom = each.box
    size = (right - left, bottom - top)
    box = [left, top, *size]
    return {"category_id": label, "bbox": box, "area": size[0] * size[1], "iscrowd": 0, "score": each.score}
