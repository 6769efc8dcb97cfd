"""Ultralytics' models with random weights: files that its own exporter writes, and its modules as factories.

Answers are those of its ``predict`` on the exported file: its letterbox to the whole square (``rect=False``), its
non-maximum suppression, and masks at the frame's size (``retina_masks=True``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

import ultralytics
from ultralytics import RTDETR, YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.export.onnx import onnx_int8_quantize

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode.results import Class, Detection, Mask, Result, Segmentation, SegmentedClass

from .case import Answer, Case, Prepare, Query, lively, street_frames

__all__ = ["CASES"]

_ORIGIN = f"ultralytics {ultralytics.__version__}"
_HEADS = {
    # About ten places of a frame score 0.3 under one of 80 classes.
    "classes": (-8.7, 0.6),
    "class": (-6.5, 1.5),
    "queries": (-3.0, 0.5),
}
"""Kind of a head's last layer -> mean and standard deviation wanted for its logits."""
_ON_A_BACKBONE = ("-seg", "-pose")
"""Suffixes of the names of networks whose layers before the head are equal to the detector's."""
_TASKS = {"seg": "segmentation", "sem": "segmentation", "pose": "pose", "cls": "classification"}


@cache
def _net(name: str) -> Any:
    """Return a network with random weights that finds objects.

    Networks of one architecture have the same layers before their heads, as after training heads on a frozen backbone.

    Args:
        name: configuration, without ``.yaml``.
    """
    heads = dict(_heads(_wrapper(name)(f"{name}.yaml").model))
    net: Any = lively(lambda: _with_head(name), heads)
    if name.endswith(_ON_A_BACKBONE):
        donor: Any = _net(name.rpartition("-")[0])
        for ours, theirs in zip(net.model[:-1], donor.model[:-1], strict=True):
            ours.load_state_dict(theirs.state_dict())
    names = YAML.load(check_yaml("coco8.yaml"))["names"]
    if len(net.names) == len(names):
        net.names = names
    return net


def _with_head(name: str) -> Any:
    """Return a network. If its backbone is another network's, its head gets random weights that no other head has."""
    net: Any = _wrapper(name)(f"{name}.yaml").model
    if name.endswith(_ON_A_BACKBONE):
        torch.manual_seed(len(name))
        for part, layer in net.model[-1].named_modules():
            if "dfl" not in part and hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return net


def _wrapper(name: str) -> Any:
    return RTDETR if name.startswith("rtdetr") else YOLO


def _heads(net: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the names of the last layers of a network's head, each with the mean and standard deviation wanted."""
    last = len(net.model) - 1
    head = net.model[last]
    for layer, module in head.named_modules():
        kind, *rest = layer.removeprefix("one2one_").split(".")
        name = f"model.{last}.{layer}"
        if isinstance(module, nn.Conv2d) and layer[-1].isdigit() and len(rest) in (1, 2):
            if kind == "cv2":
                # With one bin, outputs are distances to the sides of a box, in cells.
                yield name, (5, 0.3) if head.reg_max == 1 else (0, 1)
            elif kind == "cv3":
                yield name, _HEADS["class" if head.nc == 1 else "classes"]
            elif kind in ("cv4", "cv4_kpts"):
                yield name, (0, 1)
        elif layer in ("linear", "classifier.1"):
            yield name, (0, 3)
        elif layer in ("enc_score_head", f"dec_score_head.{getattr(head, 'num_decoder_layers', 0) - 1}"):
            yield name, _HEADS["queries"]
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
    """Return a function that exports a network to ``a.onnx`` and returns its query."""
    return lambda folder: _export(name, folder, "a.onnx", **options)


def _quantized(folder: Path) -> Query:
    """Write yolov8n in int8, quantized by Ultralytics on frames of the street."""
    _export("yolov8n", folder, "float.onnx")
    frame = LetterBox((640, 640), auto=False)
    pixels = [frame(image=image)[..., ::-1].transpose(2, 0, 1)[None] for image in street_frames()]
    onnx_int8_quantize(folder / "float.onnx", folder / "a.onnx", pixels, lambda image: image.astype(np.float32) / 255)
    return {"task": "detection", "model": {"onnx": "a.onnx"}}


def _module(name: str, file: str = "a") -> Prepare:
    """Return a function that writes a network's weights and returns a query with the network's class as factory."""

    def prepare(folder: Path) -> Query:
        net = _net(name)
        torch.save(net.state_dict(), folder / f"{file}.pt")
        factory = f"{type(net).__module__}:{type(net).__name__}"
        args = {"cfg": f"{name}.yaml", "verbose": False}
        task = _TASKS.get(name.rpartition("-")[2], "detection")
        return {"task": task, "model": {"factory": factory, "args": args, "weights": f"{file}.pt"}}

    return prepare


def _predict_module(folder: Path) -> Answer:
    """Open yolov8n in PyTorch, with the names that a module has without a data set."""
    model: Any = YOLO("yolov8n.yaml")
    model.model = deepcopy(_net("yolov8n"))
    model.model.names = {number: str(number) for number in range(80)}
    return lambda image: _result(model.predict(image, imgsz=640, rect=False, verbose=False)[0])


def _predict_rounded(folder: Path) -> Answer:
    """Open yolov8n in PyTorch with weights of float16, as gemel runs the file: with values of float32.

    ONNX Runtime's values of float16 round the edges of boxes to half a pixel.
    """
    model: Any = YOLO("yolov8n.yaml")
    model.model = deepcopy(_net("yolov8n")).fuse(verbose=False)
    for weight in model.model.parameters():
        weight.data = weight.data.half().float()
    return lambda image: _result(model.predict(image, imgsz=640, rect=False, verbose=False)[0])


def _sibling(name: str, **options: Any) -> Prepare:
    """Return a function that exports a second network to ``b.onnx`` and returns its query."""
    return lambda folder: _export(name, folder, "b.onnx", **options)


def _predict(name: str, size: int | list[int] = 640, file: str = "a.onnx") -> Callable[[Path], Answer]:
    """Return a function that opens an exported file in Ultralytics."""

    def answers(folder: Path) -> Answer:
        model = _wrapper(name)(folder / file)

        def answer(image: Image) -> Result:
            # Ultralytics cuts the middle out of a frame for a classifier, so its classifiers get gemel's input.
            spec = InputSpec(size=(224, 224))
            source = torch.from_numpy(preprocess(image, spec)[0]) if name.endswith("-cls") else image
            return _result(model.predict(source, imgsz=size, rect=False, retina_masks=True, verbose=False)[0])

        return answer

    return answers


def _result(found: Any) -> Result:
    """Return Ultralytics' results as gemel's. Boxes that lie outside the frame have no area, and are left out."""
    if found.probs is not None:
        return tuple(
            Class(found.names[number], float(score), number)
            for number, score in zip(found.probs.top5, found.probs.top5conf, strict=True)
        )
    if found.semantic_mask is not None:
        return _areas(found)
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


def _areas(found: Any) -> Result:
    """Return the map of classes of a semantic segmentation as gemel's masks."""
    numbers = found.semantic_mask.data.numpy().squeeze()
    return Segmentation(
        numbers.shape,
        tuple(SegmentedClass(found.names[number], number, Mask.of(numbers == number)) for number in np.unique(numbers)),
    )


def _case(
    title: str,
    name: str,
    options: Mapping[str, Any] | None = None,
    sibling: tuple[str, str, Mapping[str, Any]] | None = None,
    predict: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Case:
    """Return the case of an exported file.

    Args:
        title: name of the case.
        name: configuration of the network.
        options: options of the export.
        sibling: words, configuration and export options of the sibling.
        predict: options of the prediction.
        fields: further fields of the case.
    """
    beside: dict[str, Any] = {}
    if sibling is not None:
        words, other, how = sibling
        beside = {"sibling_words": words, "sibling": _sibling(other, **how)}
    answers = fields.pop("answers", None) or _predict(name, **(predict or {}))
    return Case(title, _ORIGIN, False, _exported(name, **(options or {})), "Ultralytics", answers, **beside, **fields)


CASES = (
    _case("yolov8n", "yolov8n", None, ("itself at 320 x 320", "yolov8n", {"imgsz": 320})),
    _case("yolov8n dynamic", "yolov8n", {"dynamic": True}, ("its static export", "yolov8n", {})),
    _case("yolov8n nms=True", "yolov8n", {"nms": True}, ("its export without", "yolov8n", {})),
    _case("yolov8n 384 x 640", "yolov8n", {"imgsz": [384, 640]}, None, {"size": [384, 640]}),
    _case("yolov8n fp16", "yolov8n", {"quantize": 16}, answers=_predict_rounded),
    Case(
        "yolov8n int8",
        _ORIGIN,
        False,
        _quantized,
        "Ultralytics",
        _predict("yolov8n"),
        float_only="the file is quantised already",
    ),
    Case(
        "yolov8n as a module",
        _ORIGIN,
        False,
        _module("yolov8n"),
        "Ultralytics",
        _predict_module,
        _module("yolov8n-seg", "b"),
        "yolov8n-seg on the same backbone",
    ),
    _case("yolov8n-cls", "yolov8n-cls", {"imgsz": 224}, None, {"size": 224}),
    _case("yolov8n-seg", "yolov8n-seg", None, ("yolov8n on the same backbone", "yolov8n", {})),
    _case("yolov8n-pose", "yolov8n-pose", None, ("yolov8n on the same backbone", "yolov8n", {})),
    _case("yolov5n", "yolov5n"),
    _case("yolov9t", "yolov9t"),
    _case("yolov10n", "yolov10n", {"nms": False}),
    _case("yolo11n", "yolo11n"),
    _case("yolo11n-seg", "yolo11n-seg", None, ("yolo11n on the same backbone", "yolo11n", {})),
    _case("yolo11n-pose", "yolo11n-pose", None, ("yolo11n on the same backbone", "yolo11n", {})),
    _case("yolo12n", "yolo12n"),
    _case("yolo26n", "yolo26n", {"nms": False}, ("its export without end to end", "yolo26n", {})),
    _case("yolo26n one to many", "yolo26n"),
    _case("yolo26n-seg", "yolo26n-seg", {"nms": False}),
    _case("yolo26n-pose", "yolo26n-pose", {"nms": False}),
    _case("yolo26n-sem", "yolo26n-sem"),
    _case("rtdetr-l", "rtdetr-l", known="with random weights, rounding decides which 300 of 8400 places it chooses"),
    _case("yolov8n-obb", "yolov8n-obb"),
)
