"""Decoders of DETR's descendants and of three final outputs equal the code of their libraries, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from decoding import (
    LETTERBOXED,
    SIZE,
    Array,
    Candidate,
    assert_same,
    detections_of,
    from_center,
    rounded_apart,
    sigmoid,
    softmax,
)

from gemel.bundles.decode_specs import DetrDecode, TripletDecode

QUERIES, CLASSES = 40, 3


def boxes_of(seed: int) -> Array:
    """Return boxes ``[QUERIES, 4]``: centre, width and height as fractions of the input."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(0.1, 0.9, (QUERIES, 2)), rng.uniform(0.05, 0.3, (QUERIES, 2))], axis=1).astype(
        np.float32
    )


def corners_in_pixels(box: Array) -> list[float]:
    height, width = SIZE
    return from_center(box[0] * width, box[1] * height, box[2] * width, box[3] * height)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_softmax_gives_the_best_class_of_a_query(threshold: float | None) -> None:
    logits, boxes = rounded_apart((QUERIES, CLASSES + 1), 0, -3, 3), boxes_of(0).astype(float)
    expected = []
    for values, box in zip(logits.tolist(), boxes, strict=True):
        scores = softmax(values)[:-1]
        if max(scores) > (threshold or 0.5):
            expected.append(Candidate(corners_in_pixels(box), max(scores), scores.index(max(scores))))
    expected.sort(key=lambda each: -each.score)
    spec = DetrDecode(classes=CLASSES, logits="l", boxes="b", activation="softmax")
    outputs = {"l": logits[None], "b": boxes[None].astype(np.float32)}
    assert len(expected) > 3
    assert_same(detections_of(spec, outputs, LETTERBOXED, threshold=threshold), expected, LETTERBOXED)


@pytest.mark.parametrize("threshold", [None, 0.01])
def test_sigmoid_gives_as_many_pairs_as_queries(threshold: float | None) -> None:
    logits, boxes = rounded_apart((QUERIES, CLASSES), 1, -3, 3), boxes_of(1).astype(float)
    pairs = [
        Candidate(corners_in_pixels(boxes[query]), sigmoid(float(logits[query, kind])), kind)
        for query in range(QUERIES)
        for kind in range(CLASSES)
    ]
    best = sorted(pairs, key=lambda each: -each.score)[:QUERIES]
    expected = [each for each in best if each.score > (threshold or 0.5)]
    spec = DetrDecode(classes=CLASSES, logits="l", boxes="b", activation="sigmoid")
    outputs = {"l": logits[None], "b": boxes[None].astype(np.float32)}
    found = detections_of(spec, outputs, threshold=threshold)
    assert threshold is None or len(found) == QUERIES
    assert_same(found, expected)


@pytest.mark.parametrize("batch_axis", [True, False])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("normalized", [True, False])
def test_triplet(batch_axis: bool, first: int, normalized: bool) -> None:
    boxes = boxes_of(2).astype(float)
    scores, numbers = rounded_apart((QUERIES,), 3), np.random.default_rng(3).integers(0, CLASSES + 1, QUERIES)
    expected = sorted(
        (
            Candidate(corners_in_pixels(box), float(score), int(number) - first)
            for box, score, number in zip(boxes, scores, numbers, strict=True)
            if score > 0.25 and number >= first
        ),
        key=lambda each: -each.score,
    )
    pixels = np.array([corners_in_pixels(box) for box in boxes], np.float32)
    given = pixels / (np.array([SIZE[1], SIZE[0]] * 2, np.float32) if normalized else 1)
    outputs = {"n": numbers, "b": given, "s": scores}
    if batch_axis:
        outputs = {name: values[None] for name, values in outputs.items()}
    spec = TripletDecode(classes=CLASSES, labels="n", boxes="b", scores="s", normalized=normalized, first_class=first)
    assert_same(detections_of(spec, outputs, LETTERBOXED), expected, LETTERBOXED, first)
