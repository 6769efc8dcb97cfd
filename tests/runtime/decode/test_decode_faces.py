"""Decoders of SCRFD, RetinaFace and YuNet equal their published code, place by place."""

from __future__ import annotations

import math
from itertools import product

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
    suppressed,
)

from gemel.bundles.decode_specs import FaceGridDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode.results import Detection

STRIDES = (8, 16, 32)
Place = tuple[int, int, int, float]
"""Column, row, stride, and the side of the prior (0 without priors)."""
SIDES = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))


def places(kinds: tuple[tuple[float, ...], ...]) -> list[Place]:
    return [
        (x, y, stride, side)
        for stride, sides in zip(STRIDES, kinds, strict=True)
        for y, x, side in product(range(math.ceil(SIZE[0] / stride)), range(math.ceil(SIZE[1] / stride)), sides)
    ]


def split(rows: Array, kinds: int) -> list[Array]:
    """Return rows as one array per level."""
    counts = [math.ceil(SIZE[0] / stride) * math.ceil(SIZE[1] / stride) * kinds for stride in STRIDES]
    return np.split(rows, np.cumsum(counts)[:-1])


def check(
    found: list[Detection], candidates: list[Candidate], points: list[list[tuple[float, float]]], geometry: Geometry
) -> None:
    expected = suppressed(candidates, 0.4, 100)
    assert len(expected) > 5
    assert_same(found, expected, geometry)
    scale = geometry.source[0] / geometry.valid[0]
    left, top, right, bottom = geometry.area
    inside = [
        each
        for each in expected
        if min(each.box[2], right) > max(each.box[0], left) and min(each.box[3], bottom) > max(each.box[1], top)
    ]
    for got, each in zip(found, inside, strict=True):
        wanted = [
            (min(max((x - left) * scale, 0), geometry.source[1]), min(max((y - top) * scale, 0), geometry.source[0]))
            for x, y in points[each.row]
        ]
        assert np.allclose(got.landmarks, wanted, atol=2e-2) and len(got.landmarks) == 5


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED])
@pytest.mark.parametrize("batch_axis", [True, False])
def test_scrfd(geometry: Geometry, batch_axis: bool) -> None:
    where = places(((0, 0),) * 3)
    rng = np.random.default_rng(0)
    scores = rounded_apart((len(where), 1), 0)
    reach = rng.uniform(0.2, 3, (len(where), 4)).astype(np.float32)
    dots = rng.normal(0, 1, (len(where), 10)).astype(np.float32)
    candidates, points = [], []
    for row, (x, y, stride, _) in enumerate(where):
        left, top, right, bottom = (reach[row].astype(float) * stride).tolist()
        box = [x * stride - left, y * stride - top, x * stride + right, y * stride + bottom]
        points.append([(x * stride + dx * stride, y * stride + dy * stride) for dx, dy in dots[row].reshape(5, 2)])
        if scores[row, 0] > 0.5:
            candidates.append(Candidate(box, float(scores[row, 0]), 0, row))
    outputs = {
        f"{name}{stride}": part[None] if batch_axis else part
        for name, rows in (("s", scores), ("b", reach), ("p", dots))
        for stride, part in zip(STRIDES, split(rows, 2), strict=True)
    }
    names = {key: tuple(f"{key[0]}{stride}" for stride in STRIDES) for key in ("scores", "boxes", "points")}
    spec = FaceGridDecode(style="scrfd", strides=STRIDES, kinds=2, **names)
    check(detections_of(spec, outputs, geometry), candidates, points, geometry)
    bare = spec.model_copy(update={"points": ()})
    assert all(face.landmarks == () for face in detections_of(bare, outputs, geometry))


@pytest.mark.parametrize("raw", [True, False])
def test_retinaface(raw: bool) -> None:
    where = places(SIDES)
    rng = np.random.default_rng(1)
    loc = rng.normal(0, 1, (len(where), 4)).astype(np.float32)
    dots = rng.normal(0, 3, (len(where), 10)).astype(np.float32)
    face = rounded_apart((len(where), 1), 2)
    candidates, points = [], []
    for row, (x, y, stride, side) in enumerate(where):
        cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
        dx, dy, dw, dh = loc[row].tolist()
        box = from_center(
            cx + dx * 0.1 * side, cy + dy * 0.1 * side, side * math.exp(dw * 0.2), side * math.exp(dh * 0.2)
        )
        points.append([(cx + px * 0.1 * side, cy + py * 0.1 * side) for px, py in dots[row].reshape(5, 2)])
        if face[row, 0] > 0.5:
            candidates.append(Candidate(box, float(face[row, 0]), 0, row))
    conf = np.concatenate([1 - face, face], axis=1)
    outputs = {"loc": loc[None], "conf": (np.log(conf) if raw else conf)[None], "landms": dots[None]}
    spec = FaceGridDecode(
        style="retinaface",
        scores=("conf",),
        boxes=("loc",),
        points=("landms",),
        activation="softmax" if raw else "none",
    )
    check(detections_of(spec, outputs), candidates, points, WHOLE)


def test_yunet() -> None:
    where = places(((0,),) * 3)
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.5, (len(where), 4)).astype(np.float32)
    dots = rng.normal(0, 1, (len(where), 10)).astype(np.float32)
    # Values slightly outside the range of a probability are clipped.
    kind, sure = rounded_apart((len(where), 1), 4, 0.3, 1.1), rounded_apart((len(where), 1), 5, 0.3, 0.99)
    candidates, points = [], []
    for row, (x, y, stride, _) in enumerate(where):
        score = math.sqrt(min(float(kind[row, 0]), 1) * float(sure[row, 0]))
        cx, cy, w, h = values[row].tolist()
        box = from_center((x + cx) * stride, (y + cy) * stride, math.exp(w) * stride, math.exp(h) * stride)
        points.append([((px + x) * stride, (py + y) * stride) for px, py in dots[row].reshape(5, 2)])
        if score > 0.5:
            candidates.append(Candidate(box, score, 0, row))
    outputs, names = {}, {}
    for field, key, rows in (
        ("scores", "cls", kind),
        ("objectness", "obj", sure),
        ("boxes", "bbox", values),
        ("points", "kps", dots),
    ):
        names[field] = tuple(f"{key}_{stride}" for stride in STRIDES)
        outputs.update({name: part[None] for name, part in zip(names[field], split(rows, 1), strict=True)})
    spec = FaceGridDecode(style="yunet", strides=STRIDES, **names)
    check(detections_of(spec, outputs), candidates, points, WHOLE)
