"""Mean average precision of detections, by boxes, masks or keypoints, computed by pycocotools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .evidence import Matches, PrecisionEvidence, accuracy_of
from .results import Detection, Mask

__all__ = ["Overlap", "matched", "mean_average_precision"]

Overlap = Literal["boxes", "masks", "keypoints"]
"""Part of a detection (box, mask or keypoints) that is compared with the same part of a true object."""

_MATCH = 0.5
"""Minimum overlap (intersection over union, or object keypoint similarity) at which a detection matches an object."""
_BODY = 0.53
"""Area of an object divided by the area of its box, which scales the distances of keypoints; from Ultralytics."""
_VISIBLE = 0.3
"""Minimum score at which a true object's keypoint counts. If all its keypoints score less, all its keypoints count."""
_FAR = 1e6
"""Coordinate in pixels, far from every object, of a keypoint that a detection lacks."""
_COCO_POINTS = 17
_KINDS: Mapping[Overlap, str] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}


def mean_average_precision(
    found: Sequence[Sequence[Detection]],
    truth: Sequence[Sequence[Detection]],
    *,
    by_count: bool,
    overlap: Overlap = "boxes",
) -> float:
    """Return the mAP@50 of detections: average precision at an overlap of 0.5, averaged over the labels in ``truth``.

    The arguments are those of :func:`matched`.
    """
    return accuracy_of(matched(found, truth, by_count=by_count, overlap=overlap))


def matched(
    found: Sequence[Sequence[Detection]],
    truth: Sequence[Sequence[Detection]],
    *,
    by_count: bool,
    overlap: Overlap = "boxes",
) -> PrecisionEvidence:
    """Match detections with true objects, frame by frame, at an overlap of 0.5; return the evidence of mAP@50.

    Args:
        found: detections of each frame.
        truth: true objects of each frame, at least one in all frames together; their scores are ignored.
        by_count: weight labels by their number of objects instead of equally. If the truth comes from a detector, its
            rare labels are often mistakes, and one mistake must not weigh as much as all people.
        overlap: boxes or masks, compared by intersection over union; or keypoints, compared by COCO's object keypoint
            similarity. Detections without a mask or keypoints match no object.
    """
    names = {each.label for frame in truth for each in frame}
    # Sorted, as COCOeval sorts categories. Detections with other labels than the truth's are left out.
    labels = {label: number for number, label in enumerate(sorted(names), 1)}
    points = max(len(each.keypoints) for frames in (found, truth) for frame in frames for each in frame)
    results = _annotations(found, labels, overlap, points)
    if not results:
        empty = (np.zeros(0, np.int64), np.zeros(0, bool))
        counts = [[sum(each.label == label for each in frame) for frame in truth] for label in labels]
        return PrecisionEvidence(tuple(Matches(*empty, np.array(count, np.float64)) for count in counts), by_count)
    # pycocotools prints its progress.
    with redirect_stdout(StringIO()):
        wanted = COCO()
        wanted.dataset = {
            "info": {},  # pycocotools 2.0.9 and 2.0.10 need the key
            "images": [{"id": image} | _size(frame) for image, frame in enumerate(truth)],
            "categories": [{"id": number} for number in labels.values()],
            "annotations": _annotations(truth, labels, overlap, points),
        }
        wanted.createIndex()
        evaluation = COCOeval(wanted, wanted.loadRes(results), _KINDS[overlap])
        evaluation.params.iouThrs = np.array([_MATCH])
        evaluation.params.maxDets = [max(map(len, found))]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        if overlap == "keypoints" and points != _COCO_POINTS:
            # COCO has spreads for its own 17 points only. Ultralytics judges other points by the same spread as here.
            evaluation.params.kpt_oks_sigmas = np.full(points, 1 / points)
        evaluation.evaluate()
    # One entry per label and image, in this order; None where an image has neither detections nor objects of a label.
    entries = [
        evaluation.evalImgs[first : first + len(truth)] for first in range(0, len(evaluation.evalImgs), len(truth))
    ]
    return PrecisionEvidence(tuple(map(_matches, entries)), by_count)


def _matches(entries: Sequence[Mapping[str, Any] | None]) -> Matches:
    """Return the matches of one label, given COCOeval's entry of each image."""
    rows = [
        (image, score, match != 0)
        for image, entry in enumerate(entries)
        if entry is not None
        for score, match, ignored in zip(entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True)
        if not ignored
    ]
    rows.sort(key=lambda row: -row[1])
    objects = [0 if entry is None else len(entry["gtIgnore"]) - int(sum(entry["gtIgnore"])) for entry in entries]
    return Matches(
        np.array([image for image, _, _ in rows], np.int64),
        np.array([hit for _, _, hit in rows], bool),
        np.array(objects, np.float64),
    )


def _annotations(
    frames: Sequence[Sequence[Detection]], labels: Mapping[str, int], overlap: Overlap, points: int
) -> list[dict[str, Any]]:
    """Return detections as COCO annotations, numbered from 1, because pycocotools takes 0 for "no match"."""
    known = [(image, each) for image, frame in enumerate(frames) for each in frame if each.label in labels]
    fields: Mapping[Overlap, Callable[[Detection], dict[str, Any]]]
    fields = {"boxes": _box, "masks": _mask, "keypoints": partial(_points, count=points)}
    return [
        {"category_id": labels[each.label], "iscrowd": 0, "score": each.score, "id": number, "image_id": image}
        | fields[overlap](each)
        for number, (image, each) in enumerate(known, 1)
    ]


def _size(frame: Sequence[Detection]) -> dict[str, int]:
    """Return a frame's height and width as fields of a COCO image; pycocotools reads them for masks only."""
    height, width = next((each.mask.size for each in frame if each.mask is not None), (0, 0))
    return {"height": height, "width": width}


def _box(each: Detection) -> dict[str, Any]:
    left, top, right, bottom = each.box
    size = (right - left, bottom - top)
    return {"bbox": [left, top, *size], "area": size[0] * size[1]}


def _mask(each: Detection) -> dict[str, Any]:
    # One pixel without a mask: pycocotools compares masks of different sizes as not overlapping.
    mask = each.mask or Mask.of(np.zeros((1, 1)))
    return {"segmentation": {"size": list(mask.size), "counts": mask.counts}, "area": mask.area()}


def _points(each: Detection, count: int) -> dict[str, Any]:
    """Return the keypoints of a detection as fields of a COCO annotation, filled up to ``count`` keypoints."""
    sure = any(score >= _VISIBLE for _, _, score in each.keypoints)
    values: list[float] = []
    for x, y, score in each.keypoints:
        values += [x, y, 2 if score >= _VISIBLE or not sure else 0]
    missing = count - len(each.keypoints)
    box = _box(each)
    return {
        "keypoints": values + [_FAR, _FAR, 0] * missing,
        "num_keypoints": sum(value > 0 for value in values[2::3]),
        "bbox": box["bbox"],
        "area": box["area"] * _BODY,
    }
