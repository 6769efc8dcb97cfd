"""The decoder of NanoDet and PicoDet equals the equations of Generalized Focal Loss, cell by cell."""

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
    clipped,
    detections_of,
    rounded_apart,
    softmax,
    suppressed,
)

from gemel.bundles.decode_specs import GflDecode
from gemel.frames.preprocess import Geometry

STRIDES, CLASSES, BINS = (8, 16, 32, 64), 3, 8


def levels() -> list[tuple[int, int, int]]:
    """Return the height, the width and the stride of each level; the last one is filled in part."""
    return [(math.ceil(SIZE[0] / stride), math.ceil(SIZE[1] / stride), stride) for stride in STRIDES]


def outputs_of(seed: int) -> tuple[list[Array], list[Array]]:
    """Return scores ``[h * w, CLASSES]`` and distances ``[h * w, 4 * BINS]``, one array per level."""
    total = sum(height * width for height, width, _ in levels())
    scores, rng = rounded_apart((total, CLASSES), seed), np.random.default_rng(seed)
    splits = np.cumsum([height * width for height, width, _ in levels()])[:-1]
    distances = rng.normal(0, 3, (total, 4 * BINS)).astype(np.float32)
    return np.split(scores, splits), np.split(distances, splits)


def candidates_of(scores: list[Array], distances: list[Array], offset: float, threshold: float) -> list[Candidate]:
    found = []
    for (height, width, stride), level_scores, level_distances in zip(levels(), scores, distances, strict=True):
        for y, x in np.ndindex(height, width):
            row = y * width + x
            sides = [
                sum(number * share for number, share in enumerate(softmax(bins))) * stride
                for bins in level_distances[row].reshape(4, BINS).tolist()
            ]
            cx, cy = (x + offset) * stride, (y + offset) * stride
            box = [cx - sides[0], cy - sides[1], cx + sides[2], cy + sides[3]]
            found += [
                Candidate(box, float(score), kind) for kind, score in enumerate(level_scores[row]) if score > threshold
            ]
    return found


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED])
@pytest.mark.parametrize("form", ["rows", "maps", "joint", "logits"])
def test_equals_the_equations(geometry: Geometry, form: str) -> None:
    scores, distances = outputs_of(4)
    offset = 0.0 if form == "joint" else 0.5
    expected = suppressed(clipped(candidates_of(scores, distances, offset, 0.6), geometry.area), 0.6, 100)
    assert len(expected) > 10
    if form == "logits":
        scores = [np.log(each / (1 - each)) for each in scores]
    outputs: dict[str, Array] = {}
    if form == "joint":
        outputs["joint"] = np.concatenate([np.concatenate(scores), np.concatenate(distances)], axis=1)[None]
    else:
        for (height, width, stride), first, second in zip(levels(), scores, distances, strict=True):
            both = (first, second)
            if form == "maps":
                both = tuple(each.T.reshape(-1, height, width) for each in both)
            outputs[f"s{stride}"], outputs[f"d{stride}"] = (each[None] for each in both)
    spec = GflDecode(
        classes=CLASSES,
        scores=("joint",) if form == "joint" else tuple(f"s{stride}" for stride in STRIDES),
        distances=() if form == "joint" else tuple(f"d{stride}" for stride in STRIDES),
        strides=STRIDES,
        reg_max=BINS - 1,
        cell_offset=offset,
        activation="sigmoid" if form == "logits" else "none",
    )
    assert_same(detections_of(spec, outputs, geometry, threshold=0.6), expected, geometry)
