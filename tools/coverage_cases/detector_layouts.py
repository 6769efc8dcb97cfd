"""Detectors of further layouts: YOLOX, PicoDet, RTMDet, PP-YOLOE and YOLO-NAS with random weights.

LibreYOLO exports all but YOLOX, and its own backend for ONNX files answers. LibreYOLO resizes with Pillow, which
smooths when it shrinks a frame, and pads RTMDet's input with a colour, not a grey. Square frames of the input's size
need neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import libreyolo
import numpy as np
import torch
from torch import nn
from yolox.config import YoloxNano
from yolox.data.data_augment import preproc
from yolox.utils import postprocess

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.frames.source import resolve
from gemel.runtime.decode.results import Detection, Result

from .case import STREET, Answer, Case, Prepare, Query, lively

__all__ = ["CASES"]

_LIBRE = f"PyPI libreyolo {version('libreyolo')}"
_YOLOX = f"PyPI pixeltable-yolox {version('pixeltable-yolox')}"
_NAMES = tuple(libreyolo.LibreYOLOX(model_path=None, size="n", device="cpu").names.values())
_IMAGENET = InputSpec(size=(640, 640), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_HEADS: dict[str, tuple[tuple[str, tuple[float, float]], ...]] = {
    # One layer gives scores and the distributions of distances, of which a softmax leaves out the mean.
    "LibrePICODET": (("head.gfl_cls", (-6.5, 0.6)),),
    "LibreRTMDet": (("head.rtm_cls", (-8.2, 0.6)), ("head.rtm_reg", (4, 0.5))),
    "LibrePPYOLOE": (("head.pred_cls", (-12.5, 0.6)), ("head.pred_reg", (0, 1))),
    "LibreYOLONAS": (("heads", (-6.5, 2.4)),),
}
"""Model -> prefixes of the names of its last layers, each with the mean and standard deviation wanted for their
outputs."""


def squares(folder: Path) -> str:
    """Write square pieces of the street video, enlarged to 640 x 640 pixels, and return the name of their folder."""
    (folder / "squares").mkdir(exist_ok=True)
    with closing(resolve("street", STREET).open()) as reader:
        for index, (_, load) in enumerate(islice(reader, 0, 240, 12)):
            left = 18 * index
            piece = cv2.resize(load()[:, left : left + 272], (640, 640))
            cv2.imwrite(str(folder / "squares" / f"{index:02d}.png"), piece)
    return "squares"


@cache
def _libre(name: str, size: str) -> Any:
    """Return a model of LibreYOLO with random weights that finds objects."""
    model = getattr(libreyolo, name)(model_path=None, size=size, device="cpu")

    def heads() -> Iterator[tuple[str, tuple[float, float]]]:
        for layer, module in model.model.named_modules():
            for start, part in _HEADS[name]:
                last = layer.rpartition(".")[2]
                if layer.startswith(start) and isinstance(module, nn.Conv2d) and (last[0].isdigit() or "pred" in last):
                    yield layer, (0, 1) if last == "reg_pred" else part

    model.model = lively(lambda: model.model, dict(heads()), spec=_IMAGENET)
    return model


def _exported(name: str, size: str, file: str = "a.onnx") -> Prepare:
    """Return a function that exports a model with LibreYOLO's exporter, and returns its query."""

    def prepare(folder: Path) -> Query:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _libre(name, size).export("onnx", output_path=str(folder / file), imgsz=640)
        return {"task": "detection", "model": {"onnx": file}}

    return prepare


def _libre_answers(overlap: float) -> Callable[[Path], Answer]:
    """Return a function that opens the exported file in LibreYOLO.

    Args:
        overlap: overlap (IoU) above which the authors of the model family suppress a box.
    """

    def answers(folder: Path) -> Answer:
        model = libreyolo.LibreYOLO(str(folder / "a.onnx"), device="cpu")

        def answer(image: Image) -> Result:
            found = model(image, conf=0.25, iou=overlap, color_format="bgr").boxes
            return _detections(found.xyxy, found.conf, found.cls)

        return answer

    return answers


def _module_answers(name: str, size: str, spec: InputSpec) -> Callable[[Path], Answer]:
    """Return a function that answers with a module of LibreYOLO on gemel's input, at the family's own thresholds.

    LibreYOLO's backend for ONNX files has its own preprocessing of YOLO-NAS (636 pixels in the middle of an input of
    640), and clips PP-YOLOE's boxes to the frame before it suppresses overlaps, which the family itself does after.
    """
    suppress = getattr(libreyolo.postprocess, name.removeprefix("Libre").lower()).postprocess

    def answers(folder: Path) -> Answer:
        model = _libre(name, size).model.eval()

        def answer(image: Image) -> Result:
            pixels, _ = preprocess(image, spec)
            with torch.inference_mode():
                outputs = model(torch.from_numpy(pixels))
            more = {"letterbox": False} if name == "LibreYOLONAS" else {}
            found = suppress(outputs, 0.25, 0.7, 640, (640, 640), **more)
            return _detections(found["boxes"], found["scores"], found["classes"])

        return answer

    return answers


def _detections(boxes: Any, scores: Any, classes: Any) -> tuple[Detection, ...]:
    """Return boxes ``[K, 4]``, scores and classes as detections; boxes without an area are left out."""
    rows = zip(*(np.asarray(each).tolist() for each in (boxes, scores, classes)), strict=True)
    return tuple(
        Detection(tuple(box), score, _NAMES[int(number)], int(number))
        for box, score, number in rows
        if box[2] > box[0] and box[3] > box[1]
    )


@cache
def _yolox() -> Any:
    """Return YOLOX-Nano with random weights that finds objects."""
    heads: dict[str, tuple[float, float]] = {}
    for level in range(3):
        heads |= {f"head.cls_preds.{level}": (-6, 0.6), f"head.obj_preds.{level}": (-3, 2)}
        heads |= {f"head.reg_preds.{level}": (1.2, 0.15)}
    spec = InputSpec(size=(416, 416), color="bgr", scale=1.0, fit="letterbox", pad=114.0)
    return lively(lambda: YoloxNano().get_model(), heads, spec=spec)


def _export_yolox(folder: Path) -> Query:
    """Export YOLOX as its own export script does, with boxes relative to their cells, and return its query."""
    model = _yolox()
    model.head.decode_in_inference = False
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 416, 416),),
        folder / "a.onnx",
        input_names=["images"],
        output_names=["output"],
        opset_version=11,
        dynamo=False,
    )
    return {"task": "detection", "labels": list(_NAMES), "model": {"onnx": "a.onnx"}}


def _yolox_answers(folder: Path) -> Answer:
    """Open YOLOX in PyTorch, with its own preprocessing and non-maximum suppression."""
    model = _yolox()
    model.head.decode_in_inference = True

    def answer(image: Image) -> Result:
        pixels, ratio = preproc(image, (416, 416))
        with torch.inference_mode():
            (found,) = postprocess(model(torch.from_numpy(pixels)[None]), 80, 0.25, 0.45)
        if found is None:
            return ()
        boxes = (found[:, :4] / ratio).numpy()
        limit = np.array([image.shape[1], image.shape[0]] * 2)
        return _detections(boxes.clip(0, limit), found[:, 4] * found[:, 5], found[:, 6])

    return answer


def _libre_case(title: str, name: str, size: str, answers: Callable[[Path], Answer]) -> Case:
    return Case(title, _LIBRE, False, _exported(name, size), "LibreYOLO", answers, frames=squares)


CASES = (
    Case("yolox-nano", _YOLOX, False, _export_yolox, "YOLOX", _yolox_answers),
    _libre_case("picodet-l", "LibrePICODET", "l", _libre_answers(0.6)),
    _libre_case("rtmdet-t", "LibreRTMDet", "t", _libre_answers(0.65)),
    _libre_case("ppyoloe-s", "LibrePPYOLOE", "s", _module_answers("LibrePPYOLOE", "s", _IMAGENET)),
    _libre_case("yolo-nas-s", "LibreYOLONAS", "s", _module_answers("LibreYOLONAS", "s", InputSpec(size=(640, 640)))),
)
