"""Recognition of models whose outputs are final detections, because they suppress overlapping boxes themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import EndToEndDecode, TripletDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_scores

__all__ = ["recognise_end_to_end", "recognise_triplet"]

_COCO_CLASSES = 80
"""Number of a detector's classes to assume where no workload or file names any. Higher class numbers are reported."""
_TORCHVISION_CLASSES = 90
_MOST_FINAL = 1000
"""Maximum number of final detections; EfficientDets give 5000 candidates in the same form, with overlaps."""
_LETTERBOX = {"color": "rgb", "scale": 1 / 255, "fit": "letterbox-center", "pad": 114 / 255}


def recognise_end_to_end(found: Evidence) -> Recognised | None:
    """Recognise an output of K final detections.

    ``[N, K, 6 (+ mask) (+ keypoints)]`` is from YOLOv10, YOLO26 and exports with NMS, ``[K, 7]`` from YOLOv7.
    """
    named = found.called("yolov10", "yolo26", "end-to-end", "nms") or found.metadata.end_to_end
    for output in found.of_rank(3):
        _, rows, columns = output.shape
        if columns < 6 or (not named and (rows > _MOST_FINAL or found.strides_of(rows, kinds=3) is not None)):
            continue
        values = output.values[0]
        if named or (columns == 6 and _are_final(values[:, 4], values[:, 5])):
            return _rows(found, output, values)
    for output in found.of_rank(2):
        if output.shape[1] == 7 and _are_final(output.values[:, 6], output.values[:, 5]):
            decode = EndToEndDecode(
                output=output.name, columns="batch-xyxy-class-score", classes=_classes(found, _COCO_CLASSES)
            )
            return Recognised(decode, _LETTERBOX)
    return None


def recognise_triplet(found: Evidence) -> Recognised | None:
    """Recognise K final detections in three outputs: labels ``[N, K]``, boxes ``[N, K, 4]`` and scores ``[N, K]``.

    Official exports of RT-DETR and D-FINE have the batch axis; torchvision's own have none and count classes from 1.
    """
    for boxes in found.floats:
        if boxes.shape[-1:] != (4,) or len(boxes.shape) not in (2, 3):
            continue
        beside = [output for output in found.outputs if output.shape == boxes.shape[:-1]]
        integers = [output for output in beside if not output.is_float]
        floats = [output for output in beside if output.is_float]
        if not integers and len(floats) == 2:
            integers = [output for output in floats if any(word in output.name.lower() for word in ("label", "class"))]
            floats = [output for output in floats if output not in integers]
        if len(integers) != 1 or len(floats) != 1 or not are_scores(floats[0].values):
            continue
        batchless = len(boxes.shape) == 2
        largest = float(np.abs(boxes.values).max(initial=0))
        decode = TripletDecode(
            labels=integers[0].name,
            boxes=boxes.name,
            scores=floats[0].name,
            normalized=0 < largest <= 2,
            classes=_classes(found, _TORCHVISION_CLASSES if batchless else _COCO_CLASSES),
            first_class=int(batchless),
        )
        return Recognised(decode)
    return None


def _rows(found: Evidence, output: MeasuredOutput, values: NDArray[Any]) -> Recognised:
    """Return the decoder for an output of final detections ``[N, K, columns]``, and what its columns hold."""
    rest = values.shape[1] - 6
    keypoints, per_point = found.metadata.keypoints or (rest // 3 if found.task == "pose" else 0, 3)
    masks = [other for other in found.of_rank(4) if other.shape[1] == rest and not keypoints]
    normalized = bool(0 < np.abs(values[:, :4]).max(initial=0) <= 2)
    # Ultralytics' RT-DETR writes centre and size. Corners are in order whatever the weights are; padding is 0.
    rows = values[values.any(axis=1)]
    centred = normalized and not bool((rows[:, 2:4] > rows[:, :2]).all())
    decode = EndToEndDecode(
        output=output.name,
        columns="cxcywh-score-class" if centred else "xyxy-score-class",
        normalized=normalized,
        classes=_classes(found, _COCO_CLASSES),
        masks=rest if masks else 0,
        prototypes=masks[0].name if masks and found.task == "segmentation" else None,
        keypoints=keypoints,
        keypoint_values=per_point,
    )
    return Recognised(decode, {**_LETTERBOX, "fit": "stretch"} if centred else _LETTERBOX)


def _are_final(scores: NDArray[Any], classes: NDArray[Any]) -> bool:
    """Return whether two columns of an output hold scores and whole class numbers, as final detections do."""
    return are_scores(scores) and bool((classes == np.round(classes)).all()) and bool((classes >= -1).all())


def _classes(found: Evidence, default: int) -> int:
    """Return the number of classes from workload or model file, or a default: final detections do not show it."""
    return len(found.names) if found.names is not None else default
