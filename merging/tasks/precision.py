"""Mean average precision of detections, by torchmetrics and pycocotools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from ...runtime.results import Detection
from ...workload.data import Boxes

__all__ = ["as_boxes", "mean_average_precision"]

_OVERLAP = 0.5


def as_boxes(found: Sequence[Detection]) -> Boxes:
    """Detections as if they were the truth. Labels are numbers of classes, as decoders give them without names."""
    corners = torch.tensor([each.box for each in found], dtype=torch.float32).reshape(-1, 4)
    return Boxes(corners, torch.tensor([int(each.label) for each in found], dtype=torch.int64))


def mean_average_precision(
    found: Sequence[Sequence[Detection]], truth: Sequence[Boxes], by_count: bool = False
) -> float:
    """mAP@50: average precision at an overlap (intersection over union) of 0.5, mean over the classes in ``truth``.

    Args:
        found: detections of each image.
        truth: objects of each image; at least one in all.
        by_count: classes count by their number of objects, and not all the same.
    """
    most = max(100, *(len(each) for each in found))
    metric = MeanAveragePrecision(
        iou_thresholds=[_OVERLAP], max_detection_thresholds=[1, 10, most], class_metrics=by_count
    )
    metric.update([_target(each) for each in found], [{"boxes": each.boxes, "labels": each.classes} for each in truth])
    result = metric.compute()
    if not by_count:
        return float(result["map_50"])
    counts = torch.cat([each.classes for each in truth]).bincount(minlength=int(result["classes"].max()) + 1)
    weights = counts[result["classes"].reshape(-1).long()]
    # A class that is only found and never there has no precision, -1; its weight is 0.
    return float((result["map_per_class"].reshape(-1) * weights).sum() / weights.sum())


def _target(found: Sequence[Detection]) -> dict[str, Tensor]:
    boxes = as_boxes(found)
    scores = torch.tensor([each.score for each in found], dtype=torch.float32)
    return {"boxes": boxes.boxes, "labels": boxes.classes, "scores": scores}
