"""Recognition of what a model's outputs mean: from their shapes and values, the file's metadata, and the workload.

:data:`FAMILIES` is the table: one entry per family of models, tried in order. A further family is a function in a
module of its own and an entry here; its decoder is registered in :mod:`gemel.runtime.decode.decoders`.
"""

from __future__ import annotations

import difflib

from ...errors import ModelError
from .dense_outputs import recognise_pair, recognise_rows
from .detr_outputs import recognise_detr
from .evidence import Evidence, Family, MeasuredOutput, OutputWords, Recognised
from .face_outputs import recognise_centerface, recognise_retinaface, recognise_scrfd, recognise_yunet
from .file_metadata import FileMetadata, read_metadata
from .final_outputs import recognise_end_to_end, recognise_triplet
from .gfl_outputs import recognise_gfl
from .grid_outputs import recognise_grid, recognise_queries, recognise_yolox
from .pixel_outputs import recognise_pixels
from .plain_outputs import recognise_classes, recognise_embedding, recognise_raw
from .text_outputs import recognise_text

__all__ = [
    "FAMILIES",
    "Evidence",
    "FileMetadata",
    "MeasuredOutput",
    "OutputWords",
    "Recognised",
    "read_metadata",
    "recognise_outputs",
]

_BOXES = frozenset({"detection"})
_PARTS = frozenset({"detection", "segmentation", "pose"})

FAMILIES: tuple[Family, ...] = (
    Family(("centerface",), _BOXES, "heatmap, scale, offset, landmarks", recognise_centerface),
    Family(("yunet",), _BOXES, "cls, obj, box, landmarks per level", recognise_yunet),
    Family(("scrfd",), _BOXES, "score, box, landmarks per level", recognise_scrfd),
    Family(("retinaface",), _BOXES, "[N, A, 4], [N, A, 2], [N, A, 10]", recognise_retinaface),
    Family(
        ("triplet", "rt-detr", "d-fine", "rtdetr", "dfine", "torchvision"),
        _BOXES,
        "labels [N, K], boxes [N, K, 4], scores [N, K]",
        recognise_triplet,
    ),
    Family(("yolov10", "yolo26", "end-to-end", "nms"), _PARTS, "[N, K, 6] or [K, 7]", recognise_end_to_end),
    Family(("yolo-nas", "pp-yoloe", "yolonas", "ppyoloe"), _BOXES, "boxes [N, A, 4], scores [N, A, C]", recognise_pair),
    Family(("rtmdet", "picodet"), _BOXES, "[N, A, 4+C]", recognise_rows),
    Family(
        ("yolov8", "yolo11", "yolov5", "yolov7", "yolov6", "yolo"),
        _PARTS,
        "[N, 4+C, A] or [N, A, 5+C]",
        recognise_grid,
    ),
    Family(("yolox",), _BOXES, "[N, A, 5+C] per cell", recognise_yolox),
    Family(("nanodet", "picodet", "gfl"), _BOXES, "[N, A, C+32], or [N, A, C] and [N, A, 32] per level", recognise_gfl),
    Family(("rt-detr-ultralytics", "rt-detr", "rtdetr"), _BOXES, "[N, Q, 4+C] of fractions", recognise_queries),
    Family(
        ("detr", "rt-detr", "d-fine", "rtdetr", "dfine", "rf-detr", "deformable-detr"),
        _BOXES,
        "logits [N, Q, C], boxes [N, Q, 4]",
        recognise_detr,
    ),
    Family(("segmentation",), frozenset({"segmentation"}), "[N, C, h, w], [N, h, w, C] or [N, h, w]", recognise_pixels),
    Family(("ctc", "ocr"), frozenset({"ocr"}), "[N, T, C] or [T, N, C]", recognise_text),
    Family(("classification",), frozenset({"classification"}), "[N, C], or one class number", recognise_classes),
    Family(("embedding",), frozenset({"embedding"}), "floats [N, D] or [N, C, H, W]", recognise_embedding),
    Family(("raw",), frozenset({"raw"}), "anything", recognise_raw),
)
"""Families of models whose outputs can be recognised, in the order in which they are tried."""
_TASKS = frozenset[str]().union(*(family.tasks for family in FAMILIES))
"""All tasks that a query may have."""


def recognise_outputs(found: Evidence) -> Recognised:
    """Return the decoder for a model's outputs, from the first family of models that has such outputs.

    Args:
        found: outputs of the model, its metadata, and the workload's settings.

    Raises:
        ModelError: no family of the task has such outputs, the model is for another task, or ``decode`` is unknown.
    """
    families = [family for family in FAMILIES if found.task in family.tasks]
    if found.decode is not None:
        families = [family for family in families if found.decode in family.names]
        if not families:
            raise _unknown_family(found)
    else:
        _check_task(found)
    for family in families:
        meaning = family.recognise(found)
        if meaning is not None and (found.task != "pose" or getattr(meaning.decode, "keypoints", None)):
            return meaning
    listed = ", ".join(map(str, found.outputs))
    known = "; ".join(f"{family.names[0]}: {family.outputs}" for family in families)
    ways = ", ".join(family.names[0] for family in families)
    what = f"{known} is expected" if len(families) == 1 else f"decode: may name one of {ways}"
    raise ModelError(
        f"{found.where}: no decoder for task {found.task} with outputs {listed}; {what}; task: raw reports"
        " outputs as they are"
    )


def _check_task(found: Evidence) -> None:
    """Check a query's task against the task that the model's metadata say it was trained for.

    Raises:
        ModelError: the model is for another task, and has other outputs.
    """
    trained = found.metadata.task
    allowed = {
        None: {found.task},
        # Models for segmentation and pose find boxes, too.
        "segmentation": {"segmentation", "detection"},
        "pose": {"pose", "detection"},
    }.get(trained, {trained})
    if found.task not in {*allowed, "raw", "embedding"}:
        way = f"set task: {trained}" if trained in _TASKS else "task: raw reports outputs as they are"
        raise ModelError(f"{found.where}: the model is for {trained}, as its metadata say, not for {found.task}; {way}")


def _unknown_family(found: Evidence) -> ModelError:
    """Return the error about a query's ``decode`` that names no family of models for the query's task."""
    known = list(dict.fromkeys(name for family in FAMILIES if found.task in family.tasks for name in family.names))
    near = difflib.get_close_matches(found.decode or "", known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ModelError(f"decode: {found.decode} is no decoder for task {found.task}; {hint}allowed: {', '.join(known)}")
