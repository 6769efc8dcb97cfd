"""Ultralytics' models with random weights: files that its own exporter writes, and its modules as factories.

Answers are those of its ``predict`` on the exported file: its letterbox to the whole square (``rect=False``), its
non-maximum suppression, and masks at the frame's size (``retina_masks=True``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

import ultralytics
from ultralytics import RTDETR, YOLO
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from gemel.runtime.decode.results import Detection, Mask, Result

from .case import Answer, Case, Prepare, Query, lively

__all__ = ["CASES"]

_ORIGIN = f"ultralytics {ultralytics.__version__}"
_CLASSES = (-6.2, 0.6)
"""Mean and spread of the logits of 80 classes: about a hundred places of a frame then score 0.3."""
_ONE_CLASS = (-4.2, 1.5)
_QUERIES = (-4.0, 0.5)
_TASKS = {"seg": "segmentation", "pose": "pose", "cls": "classification"}


@cache
def _net(name: str) -> nn.Module:
    """Return a network with random weights that finds objects; its first layers depend on the architecture alone."""
    net = lively(lambda: _wrapper(name)(f"{name}.yaml").model, dict(_heads(_wrapper(name)(f"{name}.yaml").model)))
    names = YAML.load(check_yaml("coco8.yaml"))["names"]
    if len(net.names) == len(names):
        net.names = names
    return net


def _wrapper(name: str) -> type[YOLO] | type[RTDETR]:
    return RTDETR if name.startswith("rtdetr") else YOLO


def _heads(net: nn.Module) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the last layers of a network's head, with the mean and the spread that their outputs are to have."""
    last = len(net.model) - 1
    head = net.model[last]
    for layer, module in head.named_modules():
        kind, *rest = layer.removeprefix("one2one_").split(".")
        name = f"model.{last}.{layer}"
        if isinstance(module, nn.Conv2d) and layer[-1].isdigit() and len(rest) in (1, 2):
            if kind == "cv2":
                # With one bin, outputs are distances to the sides of a box, in cells.
                yield name, (4, 0.5) if head.reg_max == 1 else (0, 1)
            elif kind == "cv3":
                yield name, _ONE_CLASS if head.nc == 1 else _CLASSES
            elif kind in ("cv4", "cv4_kpts"):
                yield name, (0, 1)
        elif layer == "linear":
            yield name, (0, 3)
        elif layer in ("enc_score_head", f"dec_score_head.{getattr(head, 'num_decoder_layers', 0) - 1}"):
            yield name, _QUERIES
        elif kind in ("enc_bbox_head", "dec_bbox_head") and layer.endswith("layers.2"):
            yield name, (0, 0.5)


def _export(name: str, folder: Path, file: str, **options: Any) -> Query:
    """Write a network to an ONNX file with Ultralytics' exporter, and return the query."""
    model = _wrapper(name)(f"{name}.yaml")
    model.model = deepcopy(_net(name))
    # The exporter writes its file beside the checkpoint.
    model.model.pt_path = str(folder / file)
    model.export(format="onnx", verbose=False, **options)
    return {"task": _TASKS.get(name.rpartition("-")[2], "detection"), "model": {"onnx": file}}


def _exported(name: str, **options: Any) -> Prepare:
    """Return what writes a network to a.onnx."""
    return lambda folder: _export(name, folder, "a.onnx", **options)


def _sibling(name: str, **options: Any) -> Prepare:
    """Return what writes a second network to b.onnx."""
    return lambda folder: _export(name, folder, "b.onnx", **options)


def _predict(name: str, size: int = 640, **options: Any) -> Callable[[Path], Answer]:
    """Return what opens the exported file in Ultralytics."""

    def answers(folder: Path) -> Answer:
        model = _wrapper(name)(folder / "a.onnx", **({} if "rtdetr" in name else {"task": None}))
        return lambda image: _result(
            model.predict(image, imgsz=size, rect=False, retina_masks=True, verbose=False, **options)[0]
        )

    return answers


def _result(found: Any) -> Result:
    """Return Ultralytics' results as gemel's. Boxes that lie outside the frame have no area, and are left out."""
    rows, detections = found.boxes.data.tolist(), []
    for index, (left, top, right, bottom, score, number) in enumerate(rows):
        if right <= left or bottom <= top:
            continue
        points = found.keypoints.data[index].tolist() if found.keypoints is not None else ()
        mask = Mask.of(found.masks.data[index].numpy().astype(bool)) if found.masks is not None else None
        detections.append(
            Detection(
                (left, top, right, bottom),
                score,
                found.names[int(number)],
                int(number),
                keypoints=tuple(map(tuple, points)),
                mask=mask,
            )
        )
    return tuple(detections)


CASES = (
    Case("yolov8n", _ORIGIN, False, _exported("yolov8n"), "Ultralytics", _predict("yolov8n"), _sibling("yolov8n", imgsz=320), "itself at 320 x 320"),
)
