"""Outputs at the edge: without detections, with one, empty, infinite, not a number, or in the padding only."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from decoding import LETTERBOXED, WHOLE, Array, detections_of

from gemel.bundles.decode_specs import (
    DecodeSpec,
    DetrDecode,
    EndToEndDecode,
    FaceGridDecode,
    FcosDecode,
    GflDecode,
    GridDecode,
    SsdDecode,
    TripletDecode,
    YoloxDecode,
)

CELLS = {stride: (96 // stride) * (128 // stride) for stride in (8, 16, 32)}
PLACES = sum(CELLS.values())
ANCHORS = {"anchors": np.tile(np.array([[10, 20, 30, 40]], np.float32), (6, 1))}

FACES = {"scores": ("s",), "boxes": ("b",), "points": ("p",)}
Shapes = dict[str, tuple[int, ...]]
FIXED: dict[str, tuple[DecodeSpec, Shapes]] = {
    "yolox": (YoloxDecode(classes=2, output="o"), {"o": (1, PLACES, 7)}),
    "gfl": (
        GflDecode(classes=2, scores=("o",), strides=(8, 16, 32)),
        {"o": (1, PLACES, 2 + 32)},
    ),
    "fcos": (
        FcosDecode(classes=2, anchors="anchors"),
        {"logits": (1, 6, 2), "boxes": (1, 6, 4), "centerness": (1, 6, 1)},
    ),
    "ssd": (
        SsdDecode(
            classes=2, anchors="anchors", activation="softmax", background=True, box_weights=(1.0, 1.0, 1.0, 1.0)
        ),
        {"logits": (1, 6, 3), "boxes": (1, 6, 4)},
    ),
    "scrfd": (
        FaceGridDecode(style="scrfd", kinds=1, **FACES),
        {"s": (1, PLACES, 1), "b": (1, PLACES, 4), "p": (1, PLACES, 10)},
    ),
    "retinaface": (
        FaceGridDecode(style="retinaface", activation="softmax", **FACES),
        {"s": (1, 2 * PLACES, 2), "b": (1, 2 * PLACES, 4), "p": (1, 2 * PLACES, 10)},
    ),
    "yunet": (
        FaceGridDecode(style="yunet", objectness=("q",), **FACES),
        {"s": (1, PLACES, 1), "q": (1, PLACES, 1), "b": (1, PLACES, 4), "p": (1, PLACES, 10)},
    ),
}
FREE: dict[str, tuple[DecodeSpec, Shapes]] = {
    "yolov5": (GridDecode(classes=2, output="o", transposed=False, objectness=True), {"o": (1, 9, 7)}),
    "yolov8": (GridDecode(classes=2, output="o", transposed=True, objectness=False), {"o": (1, 6, 9)}),
    "yolov8 logits": (
        GridDecode(classes=2, output="o", transposed=True, objectness=False, activation="sigmoid"),
        {"o": (1, 6, 9)},
    ),
    "yolov8-seg": (
        GridDecode(classes=2, output="o", transposed=True, objectness=False, masks=3, prototypes="m"),
        {"o": (1, 9, 9), "m": (1, 3, 24, 32)},
    ),
    "yolov8-pose": (
        GridDecode(classes=1, output="o", transposed=True, objectness=False, keypoints=2),
        {"o": (1, 11, 9)},
    ),
    "yolov10": (EndToEndDecode(classes=2, output="o"), {"o": (1, 9, 6)}),
    "yolov7 end2end": (EndToEndDecode(classes=2, output="o", columns="batch-xyxy-class-score"), {"o": (9, 7)}),
    "yolo26-seg": (
        EndToEndDecode(classes=2, output="o", masks=3, prototypes="m"),
        {"o": (1, 9, 9), "m": (1, 3, 24, 32)},
    ),
    "detr": (DetrDecode(classes=2, logits="l", boxes="b", activation="softmax"), {"l": (1, 9, 3), "b": (1, 9, 4)}),
    "rt-detr": (DetrDecode(classes=2, logits="l", boxes="b", activation="sigmoid"), {"l": (1, 9, 2), "b": (1, 9, 4)}),
    "triplet": (
        TripletDecode(classes=2, labels="l", boxes="b", scores="s"),
        {"l": (1, 9), "b": (1, 9, 4), "s": (1, 9)},
    ),
}
ALL = FIXED | FREE


def filled(shapes: Shapes, value: float) -> dict[str, Array]:
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0])
def test_wild_outputs_give_no_warnings_and_finite_boxes(name: str, value: float) -> None:
    spec, shapes = ALL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detections_of(spec, filled(shapes, value), LETTERBOXED, tensors=ANCHORS)
    if np.isnan(value):
        assert found == []
    for each in found:
        assert np.isfinite([*each.box, each.score]).all() and each.box[0] < each.box[2] <= 256


@pytest.mark.parametrize("name", ALL)
def test_values_that_are_not_numbers_here_and_there_lose_only_their_rows(name: str) -> None:
    spec, shapes = ALL[name]
    rng = np.random.default_rng(0)
    outputs = {key: rng.normal(0, 3, shape).astype(np.float32) for key, shape in shapes.items()}
    for values in outputs.values():
        values[rng.random(values.shape) < 0.05] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detections_of(spec, outputs, LETTERBOXED, tensors=ANCHORS)
    for each in found:
        assert np.isfinite([*each.box, each.score]).all()


@pytest.mark.parametrize("name", FREE)
def test_outputs_without_rows(name: str) -> None:
    spec, shapes = FREE[name]
    rows = {"o": -1, "l": 1, "b": 1, "s": 1} if name.startswith("yolov8") else {"o": -2, "l": 1, "b": 1, "s": 1}
    outputs = {}
    for key, shape in shapes.items():
        cut = list(shape)
        if key in rows:
            cut[rows[key]] = 0
        outputs[key] = np.zeros(cut, np.float32)
    assert detections_of(spec, outputs, tensors=ANCHORS) == []


@pytest.mark.parametrize("name", ALL)
def test_no_detection_above_the_threshold(name: str) -> None:
    spec, shapes = ALL[name]
    rng = np.random.default_rng(0)
    outputs = {key: rng.uniform(0, 1, shape).astype(np.float32) for key, shape in shapes.items()}
    assert detections_of(spec, outputs, tensors=ANCHORS, threshold=1.0) == []


def test_boxes_in_the_padding_are_not_reported() -> None:
    # The frame covers 54 of 96 rows.
    row = np.array([[20, 60, 40, 90, 0.9, 1]], np.float32)
    assert detections_of(EndToEndDecode(classes=2, output="o"), {"o": row[None]}, LETTERBOXED) == []
    assert len(detections_of(EndToEndDecode(classes=2, output="o"), {"o": row[None]}, WHOLE)) == 1
    grid = np.array([[30, 75, 20, 30, 0.9]], np.float32)
    spec = GridDecode(classes=1, output="o", transposed=False, objectness=False)
    assert detections_of(spec, {"o": grid[None]}, LETTERBOXED) == []


def test_one_detection() -> None:
    row = np.array([[20, 10, 40, 30, 0.9, 1]], np.float32)
    (found,) = detections_of(EndToEndDecode(classes=2, output="o"), {"o": row[None]}, LETTERBOXED, labels=["a", "b"])
    assert (found.label, found.class_id, found.box) == ("b", 1, (40, 20, 80, 60))


def test_damaged_class_numbers_are_not_reported() -> None:
    rows = np.array([[1, 1, 9, 9, 0.9, number] for number in (-1, 1e30, np.inf, -np.inf, np.nan)], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detections_of(EndToEndDecode(classes=2, output="o"), {"o": rows[None]}) == []
        outputs = {"l": rows[None, :, 5], "b": rows[None, :, :4], "s": rows[None, :, 4]}
        spec = TripletDecode(classes=2, labels="l", boxes="b", scores="s")
        assert detections_of(spec, outputs) == []
