"""Decoding of text: repeated characters, blanks, scores, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemel.bundles.decode_specs import OcrDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Text

GEOMETRY = Geometry((48, 320), (48, 320), (48, 320))
CHARSET = ("", "a", "b", "京", " ")


def no_tensor(name: str) -> FloatArray:
    raise AssertionError(f"{name} was asked for")


def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
    raise AssertionError(f"stage {name} was run")


def steps(*best: int, probability: float = 0.8, classes: int = len(CHARSET)) -> FloatArray:
    """Return probabilities ``[1, T, C]`` with the best class of each step."""
    output = np.full((1, len(best), classes), (1 - probability) / (classes - 1), np.float32)
    output[0, range(len(best)), best] = probability
    return output


def decode(output: FloatArray, threshold: float | None = None, **spec: Any) -> Text:
    full = OcrDecode(output="text", **{"charset": CHARSET, **spec})
    result = build_decoder(full, DecodeContext(no_tensor, threshold=threshold))({"text": output}, GEOMETRY, no_stage)
    assert isinstance(result, Text)
    return result


def read(found: Text) -> tuple[str, Any]:
    return found.text, found.score


@pytest.mark.parametrize(
    ("best", "text"),
    [
        ((1, 2, 3), "ab京"),
        ((1, 1, 2, 2, 2), "ab"),
        ((1, 0, 1), "aa"),
        ((0, 0, 1, 1, 0, 1, 4, 2, 0), "aa b"),
        ((0, 0), ""),
        ((), ""),
    ],
)
def test_text(best: tuple[int, ...], text: str) -> None:
    assert read(decode(steps(*best))) == (text, pytest.approx(0.8 if text else 0.0))
    assert decode(steps(*best).transpose(1, 0, 2), layout="TNC").text == text


def test_the_score_is_the_mean_of_the_first_steps_of_characters() -> None:
    output = steps(1, 1, 0, 2)
    output[0, :, :] = 0.01
    output[0, range(4), (1, 1, 0, 2)] = 0.9, 0.3, 0.2, 0.5
    assert read(decode(output)) == ("ab", pytest.approx(0.7))


def test_scores_before_a_softmax() -> None:
    output = np.log(steps(1, 0, 2)) + 5
    assert read(decode(output, activation="softmax")) == ("ab", pytest.approx(0.8))


def test_the_blank_may_be_the_last_class() -> None:
    output = steps(0, 0, 3, 0, 1, classes=4)
    assert decode(output, charset=("x", "y", "z", "<blank>"), blank=3).text == "xxy"


def test_an_unsure_text_is_empty() -> None:
    assert decode(steps(1, 2), threshold=0.7).text == "ab"
    assert read(decode(steps(1, 2), threshold=0.9)) == ("", pytest.approx(0.8))
    assert decode(steps(1, 2) * np.float32(np.nan), threshold=0.9).text == ""


def test_a_charset_of_another_size_is_said() -> None:
    with pytest.raises(ValueError, match="output text has 7 classes, but the charset 5"):
        decode(steps(1, classes=7))


def test_as_rapidocr_decodes() -> None:
    """Compare with the loop of PaddleOCR's ``BaseRecLabelDecode.decode`` on noise."""
    output = np.random.default_rng(0).dirichlet(np.ones(len(CHARSET)) * 0.3, (1, 200)).astype(np.float32)
    text, kept = "", []
    best, sure = output[0].argmax(-1), output[0].max(-1)
    for step, index in enumerate(best.tolist()):
        if index == 0 or (step and index == best[step - 1]):
            continue
        text += CHARSET[index]
        kept.append(sure[step])
    assert read(decode(output)) == (text, pytest.approx(float(np.mean(kept))))
