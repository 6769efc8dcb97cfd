"""Decoders of YOLOv5, YOLOv7, YOLOv8, YOLO11, of end-to-end exports and of YOLOX equal a loop over the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from decoding import (
    CENTRED,
    LETTERBOXED,
    SIZE,
    WHOLE,
    Array,
    Candidate,
    assert_same,
    detections_of,
    from_center,
    rounded_apart,
    sigmoid,
    suppressed,
)

from gemel.bundles.decode_specs import EndToEndDecode, GridDecode, YoloxDecode
from gemel.frames.preprocess import Geometry


def rows_of(count: int, classes: int, extra: int, seed: int = 0) -> Array:
    """Return random rows ``[count, 4 + classes + extra]``: centre, size, scores, further values."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 1, (count, 2)) * [SIZE[1], SIZE[0]]
    # Some boxes reach beyond the input.
    sizes = rng.uniform(4, 50, (count, 2))
    scores = rounded_apart((count, classes), seed)
    return np.concatenate([centers, sizes, scores, rng.normal(size=(count, extra))], axis=1).astype(np.float32)


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED])
@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize(("objectness", "transposed"), [(True, False), (False, True)])
@pytest.mark.parametrize("turn", [False, True])
def test_grid(geometry: Geometry, threshold: float | None, objectness: bool, transposed: bool, turn: bool) -> None:
    classes = 3
    rows = rows_of(200, classes, 0, seed=int(objectness))
    if objectness:
        rows = np.concatenate([rows[:, :4], rounded_apart((200, 1), 9, 0.2), rows[:, 4:]], axis=1)
    spec = GridDecode(
        classes=classes,
        output="out",
        transposed=transposed,
        objectness=objectness,
        nms_threshold=0.4,
        max_detections=60,
        activation="sigmoid" if turn else "none",
    )
    candidates = []
    for row in rows.astype(float):
        scores = row[5:] * row[4] if objectness else row[4:]
        best = int(np.argmax(scores))
        if scores[best] > (0.25 if threshold is None else threshold):
            candidates.append(Candidate(from_center(*row[:4]), float(scores[best]), best))
    expected = suppressed(candidates, 0.4, 60)
    given = rows.copy()
    if turn:
        given[:, 4:] = np.log(rows[:, 4:] / (1 - rows[:, 4:]))
    output = given.T[None] if transposed else given[None]
    found = detections_of(spec, {"out": output}, geometry, threshold=threshold)
    assert len(expected) > 10
    assert_same(found, expected, geometry)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("every_class", [False, True])
def test_boxes_apart_and_every_class(apart: bool, every_class: bool) -> None:
    """Rows of RTMDet and PicoDet, and the two outputs of PP-YOLOE and YOLO-NAS."""
    rows = rows_of(200, 3, 0, seed=4)
    rows[:, :4] = [from_center(*row) for row in rows[:, :4]]
    spec = GridDecode(
        classes=3,
        output="scores" if apart else "out",
        boxes="boxes" if apart else None,
        transposed=False,
        objectness=False,
        box="xyxy",
        every_class=every_class,
        nms_threshold=0.4,
        max_detections=60,
    )
    candidates = []
    for row in rows.astype(float):
        numbers = range(3) if every_class else [int(np.argmax(row[4:]))]
        candidates += [Candidate(list(row[:4]), float(row[4 + i]), i) for i in numbers if row[4 + i] > 0.6]
    outputs = {"boxes": rows[None, :, :4], "scores": rows[None, :, 4:]} if apart else {"out": rows[None]}
    found = detections_of(spec, outputs, LETTERBOXED, threshold=0.6)
    expected = suppressed(candidates, 0.4, 60)
    assert len(expected) > 10
    assert_same(found, expected, LETTERBOXED)


def test_grid_of_fractions_without_suppression() -> None:
    rows = rows_of(50, 4, 0)
    spec = GridDecode(classes=4, output="out", transposed=False, objectness=False, normalized=True, nms=False)
    expected = sorted(
        (
            Candidate(from_center(*row[:4]), float(row[4:].max()), int(row[4:].argmax()))
            for row in rows.astype(float)
            if row[4:].max() > 0.25
        ),
        key=lambda each: -each.score,
    )
    given = rows.copy()
    given[:, :4] /= np.array([SIZE[1], SIZE[0]] * 2)
    assert_same(detections_of(spec, {"out": given[None]}), expected)


def test_grid_of_corners() -> None:
    rows = np.array([[10, 20, 30, 50, 0.9]], np.float32)
    spec = GridDecode(classes=1, output="out", transposed=True, objectness=False, box="xyxy")
    (found,) = detections_of(spec, {"out": rows.T[None]}, labels=["cat"])
    assert found.box == (10, 20, 30, 50) and found.label == "cat" and found.class_id == 0


@pytest.mark.parametrize("values", [2, 3])
def test_keypoints(values: int) -> None:
    points = 4
    rows = rows_of(30, 1, points * values)
    rows[:, 5:] = np.random.default_rng(3).uniform(1, 50, rows[:, 5:].shape)
    spec = GridDecode(
        classes=1, output="out", transposed=True, objectness=False, keypoints=points, keypoint_values=values
    )
    found = detections_of(spec, {"out": rows.T[None]}, LETTERBOXED)
    assert found
    by_score = {round(float(row[4]), 5): row for row in rows}
    for each in found:
        row = by_score[round(each.score, 5)][5:].reshape(points, values)
        for got, want in zip(each.keypoints, row, strict=True):
            assert got[:2] == pytest.approx((want[0] * 2, min(want[1] * 2, 108)), abs=1e-3)
            assert got[2] == pytest.approx(want[2] if values == 3 else 1.0)


def test_classes_and_numbers() -> None:
    rows = np.array([[20, 20, 10, 10, 0.9, 0.1, 0.3], [60, 60, 10, 10, 0.1, 0.8, 0.3]], np.float32)
    spec = GridDecode(classes=3, output="out", transposed=False, objectness=False, max_detections=1, first_class=1)
    outputs = {"out": rows[None]}
    labels = ["cat", "dog", "owl"]
    # A class that is not reported makes room for others before max_detections counts.
    for classes in (["dog"], ["2"]):
        (found,) = detections_of(spec, outputs, labels=labels, classes=classes)
        assert (found.label, found.class_id) == ("dog", 2) and found.score == pytest.approx(0.8)
    assert detections_of(spec, outputs, labels=labels, classes=["owl", "horse"]) == []
    assert detections_of(spec, outputs, labels=labels, classes=[]) == []
    (found,) = detections_of(spec, outputs)
    assert (found.label, found.class_id) == ("1", 1)


def test_many_candidates_are_limited_in_time_and_number() -> None:
    rows = rows_of(20_000, 2, 0)
    spec = GridDecode(classes=2, output="out", transposed=False, objectness=False, topk=5000, nms_threshold=0.5)
    found = detections_of(spec, {"out": rows[None]}, threshold=0.0)
    best = sorted(rows.astype(float), key=lambda row: -row[4:].max())[:5000]
    candidates = [Candidate(from_center(*row[:4]), float(row[4:].max()), int(row[4:].argmax())) for row in best]
    assert_same(found, suppressed(candidates, 0.5, 300))
    assert len(found) == 300


@pytest.mark.parametrize("columns", ["xyxy-score-class", "cxcywh-score-class", "batch-xyxy-class-score"])
@pytest.mark.parametrize("normalized", [False, True])
def test_end_to_end(columns: str, normalized: bool) -> None:
    rows = rows_of(40, 1, 0, 5)
    kinds = np.random.default_rng(1).integers(0, 5, 40)
    boxes = np.array([from_center(*row[:4]) for row in rows.astype(float)], np.float32)
    expected = sorted(
        (
            Candidate(box.tolist(), float(row[4]), int(kind))
            for box, row, kind in zip(boxes, rows, kinds, strict=True)
            if row[4] > 0.25
        ),
        key=lambda each: -each.score,
    )
    given = (rows[:, :4] if columns.startswith("cxcywh") else boxes) / (
        np.array([SIZE[1], SIZE[0]] * 2) if normalized else 1
    )
    if columns.startswith("batch"):
        output = np.column_stack([np.zeros(40), given, kinds, rows[:, 4]])
        output = np.concatenate([output, np.ones((3, 7)), np.zeros((3, 7))])
    else:
        output = np.concatenate([np.column_stack([given, rows[:, 4], kinds]), np.zeros((10, 6))])[None]
    spec = EndToEndDecode.model_validate({"classes": 5, "output": "o", "columns": columns, "normalized": normalized})
    found = detections_of(spec, {"o": output.astype(np.float32)}, LETTERBOXED)
    assert_same(found, expected, LETTERBOXED)


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED])
def test_yolox(geometry: Geometry) -> None:
    strides, classes = (8, 16, 32), 3
    places = [(x, y, stride) for stride in strides for y in range(SIZE[0] // stride) for x in range(SIZE[1] // stride)]
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [
            rng.normal(0, 1, (len(places), 4)),
            rounded_apart((len(places), 1), 1, 0.3),
            rounded_apart((len(places), classes), 2),
        ],
        axis=1,
    ).astype(np.float32)
    candidates = []
    for row, (x, y, stride) in zip(rows.astype(float), places, strict=True):
        scores = row[5:] * row[4]
        box = from_center(
            (row[0] + x) * stride, (row[1] + y) * stride, math.exp(row[2]) * stride, math.exp(row[3]) * stride
        )
        if scores.max() > 0.25:
            candidates.append(Candidate(box, float(scores.max()), int(scores.argmax())))
    spec = YoloxDecode(classes=classes, output="o", strides=strides)
    expected = suppressed(candidates, 0.45, 100)
    found = detections_of(spec, {"o": rows[None]}, geometry)
    assert len(expected) > 10
    assert_same(found, expected, geometry)


def test_yolox_maps_boxes_back_by_the_exact_ratio() -> None:
    # A frame of 101 x 128 pixels covers 50.5 x 64 pixels of the input, of which YOLOX uses 50.
    geometry = Geometry((101, 128), (64, 64), (50, 64))
    rows = np.zeros((1, 84, 6), np.float32)
    rows[0, 35] = (0.5, 0.5, 0, 0, 1, 1)  # the box of 8 x 8 pixels in row 4, column 3
    (found,) = detections_of(YoloxDecode(classes=1, output="o", strides=(8, 16, 32)), {"o": rows}, geometry)
    np.testing.assert_allclose(found.box, (48, 64, 64, 80), atol=1e-4)


def test_sigmoid_of_huge_values_is_stable() -> None:
    rows = np.array([[20, 20, 10, 10, 1e4, -1e4]], np.float32)
    spec = GridDecode(classes=2, output="o", transposed=False, objectness=False, activation="sigmoid")
    (found,) = detections_of(spec, {"o": rows[None]})
    assert found.score == 1 and found.class_id == 0
    assert sigmoid(0) == 0.5


@pytest.mark.parametrize("count", [300, 3000, 6000])
def test_one_far_box_leaves_the_others_alone(count: int) -> None:
    rows = rows_of(count, 2, 0, seed=7)
    spec = GridDecode(classes=2, output="o", transposed=False, objectness=False)
    near = detections_of(spec, {"o": rows[None]}, threshold=0.5)
    far = np.concatenate([rows, np.array([[-1e9, -1e9, 100, 100, 0.99, 0]], np.float32)])
    assert detections_of(spec, {"o": far[None]}, threshold=0.5)[:100] == near[:100]


def test_equal_scores_keep_the_order_of_the_places() -> None:
    # All have the same score, in classes that take turns: the first places are reported, as Ultralytics does.
    rows = np.zeros((1000, 7), np.float32)
    rows[:, 0], rows[:, 1] = np.arange(1000) % 128, np.arange(1000) // 128 * 10 + 5
    rows[:, 2:4] = 0.5
    rows[np.arange(1000), 4 + np.arange(1000) % 3] = 0.9
    spec = GridDecode(classes=3, output="o", transposed=False, objectness=False, max_detections=50)
    for few in (rows, rows[:400]):
        found = detections_of(spec, {"o": few[None]})
        assert [round(each.box[2] - 0.25) for each in found] == list(range(50))
