"""Decoding of classifications and embeddings; labels and thresholds of detections."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.bundles.decode_specs import ClassificationDecode, EmbeddingDecode, SsdDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.activations import logit, sigmoid
from gemel.runtime.decode.results import Class, Detection, Embedding

GEOMETRY = Geometry((100, 200), (50, 50), (25, 50))


def no_tensor(name: str) -> FloatArray:
    raise AssertionError(f"{name} was asked for")


def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
    raise AssertionError(f"stage {name} was run")


def test_classification() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3]], np.float32)) + 1000
    spec = ClassificationDecode(classes=3, top_k=2)

    def classes(labels: list[str] | None, threshold: float | None) -> list[Class]:
        result = build_decoder(spec, DecodeContext(no_tensor, labels, threshold))(
            {"logits": logits}, GEOMETRY, no_stage
        )
        assert isinstance(result, tuple)
        return [item for item in result if isinstance(item, Class)]

    assert [(item.label, round(item.score, 3)) for item in classes(["a", "b"], None)] == [("b", 0.6), ("2", 0.3)]
    assert [item.label for item in classes(None, 0.5)] == ["1"]


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 3, 5)])
def test_embedding(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32)
    values[:, 0], values[:, 1] = 3, -4
    decode = build_decoder(EmbeddingDecode(), DecodeContext(no_tensor))
    result = decode({"embedding": values}, GEOMETRY, no_stage)
    assert isinstance(result, Embedding) and result.values == pytest.approx((0.6, -0.8))
    raw = build_decoder(EmbeddingDecode(normalize=False), DecodeContext(no_tensor))(
        {"embedding": values}, GEOMETRY, no_stage
    )
    assert isinstance(raw, Embedding) and raw.values == (3.0, -4.0)
    zero = decode({"embedding": values * 0}, GEOMETRY, no_stage)
    assert isinstance(zero, Embedding) and zero.values == (0.0, 0.0)


def test_logit_is_a_lower_bound() -> None:
    assert logit(0) == -np.inf and logit(1) == np.inf
    scores = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    for score in scores:
        assert sigmoid(np.array([logit(float(score))], np.float32))[0] < score
    with np.errstate(over="raise"):
        assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]


def two_boxes(threshold: float | None, labels: list[str] | None, **spec: object) -> tuple[Detection, ...]:
    """Decode two anchors at the same place: class 0 scores 0.9 on the first, class 1 scores 0.6 on the second."""
    decode = SsdDecode.model_validate(
        {
            "classes": 2,
            "anchors": "a",
            "activation": "sigmoid",
            "background": False,
            "box_weights": [1, 1, 1, 1],
            **spec,
        }
    )
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.6]]], np.float32)
    outputs = {"logits": np.log(probabilities / (1 - probabilities)), "boxes": np.zeros((1, 2, 4), np.float32)}
    anchors = np.array([[10, 10, 20, 40]] * 2, np.float32)
    result = build_decoder(decode, DecodeContext({"a": anchors}.__getitem__, labels, threshold))(
        outputs, GEOMETRY, no_stage
    )
    assert isinstance(result, tuple)
    return tuple(item for item in result if isinstance(item, Detection))


def test_boxes_are_clipped_to_the_frame_and_mapped_to_its_pixels() -> None:
    # The frame covers 25 of 50 rows of the input, at a quarter of its size.
    (cat,) = two_boxes(0.8, ["cat"])
    assert cat == Detection((40.0, 40.0, 80.0, 100.0), cat.score, "cat", 0) and cat.score == pytest.approx(0.9)


def test_threshold_of_the_query_goes_before_that_of_the_model() -> None:
    assert [item.label for item in two_boxes(0.5, ["cat"])] == ["cat", "1"]
    assert [item.label for item in two_boxes(None, None, score_threshold=0.7)] == ["0"]
    assert two_boxes(0.95, None, score_threshold=0.1) == ()


def test_frame_outside_the_boxes_gives_nothing() -> None:
    spec = SsdDecode(classes=1, anchors="a", activation="sigmoid", background=False, box_weights=(1, 1, 1, 1))
    outputs = {"logits": np.ones((1, 1, 1), np.float32), "boxes": np.zeros((1, 1, 4), np.float32)}
    padding_only = np.array([[10, 30, 20, 40]], np.float32)
    assert build_decoder(spec, DecodeContext({"a": padding_only}.__getitem__))(outputs, GEOMETRY, no_stage) == ()
