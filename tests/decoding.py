"""Straightforward reference computations for tests of decoders: one candidate at a time, in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.decode_specs import DecodeSpec
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Detection, Result

Array = NDArray[Any]

SIZE = (96, 128)
"""Height and width of the input in pixels."""
WHOLE = Geometry(SIZE, SIZE, SIZE)
"""A frame of the input's size."""
LETTERBOXED = Geometry((108, 256), SIZE, (54, 128))
"""A frame that is twice as large as the part of the input that it covers."""
CENTRED = Geometry((108, 256), SIZE, (54, 128), (21, 0))
"""The same frame in the middle of the input."""


@dataclass(frozen=True)
class Candidate:
    """A box in input pixels, with its score, class, and row of the output."""

    box: list[float]
    score: float
    kind: int
    row: int = -1


def sigmoid(value: float) -> float:
    """Return the logistic function of a number."""
    return 1 / (1 + math.exp(-value))


def softmax(values: Sequence[float]) -> list[float]:
    """Return the softmax of a few numbers."""
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def from_center(cx: float, cy: float, width: float, height: float) -> list[float]:
    """Return x1 y1 x2 y2 of a box that is given by its centre."""
    return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def clipped(candidates: Iterable[Candidate], area: tuple[int, int, int, int]) -> list[Candidate]:
    """Return candidates with boxes clipped to an area (x1 y1 x2 y2); those outside are left out."""
    limits = list(zip(area[:2] * 2, area[2:] * 2, strict=True))
    boxes = [
        ([min(max(edge, low), high) for edge, (low, high) in zip(each.box, limits, strict=True)], each)
        for each in candidates
    ]
    return [
        Candidate(box, each.score, each.kind, each.row)
        for box, each in boxes
        if box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01
    ]


def suppressed(candidates: Iterable[Candidate], threshold: float, limit: int) -> list[Candidate]:
    """Return what greedy non-maximum suppression within each class keeps, best first."""
    kept: list[Candidate] = []
    for each in sorted(candidates, key=lambda item: -item.score):
        if all(other.kind != each.kind or overlap(other.box, each.box) <= threshold for other in kept):
            kept.append(each)
    return kept[:limit]


def result_of(
    spec: DecodeSpec,
    outputs: Mapping[str, Array],
    geometry: Geometry = WHOLE,
    *,
    tensors: Mapping[str, FloatArray] | None = None,
    **settings: Any,
) -> Result:
    """Return the result of a decoder that needs no further stage.

    Args:
        spec: spec of the decoder.
        outputs: outputs of the model.
        geometry: position of the frame in the input.
        tensors: tensors of the bundle.
        settings: labels, threshold and classes of the query.
    """

    def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
        raise AssertionError(f"stage {name} was run")

    context = DecodeContext((tensors or {}).__getitem__, **settings)
    return build_decoder(spec, context)(dict(outputs), geometry, no_stage)


def detections_of(
    spec: DecodeSpec, outputs: Mapping[str, Array], geometry: Geometry = WHOLE, **settings: Any
) -> list[Detection]:
    """Return the detections of a decoder: :func:`result_of`, with its type checked."""
    result = result_of(spec, outputs, geometry, **settings)
    assert isinstance(result, tuple)
    found = [item for item in result if isinstance(item, Detection)]
    assert len(found) == len(result)
    return found


def assert_same(
    found: Sequence[Detection], expected: Sequence[Candidate], geometry: Geometry = WHOLE, first: int = 0
) -> None:
    """Check that detections are the expected ones, in order, in source pixels.

    Args:
        found: detections of the decoder.
        expected: candidates in input pixels.
        geometry: position of the frame in the input.
        first: number of the first class.
    """
    x, y = geometry.source[1] / geometry.valid[1], geometry.source[0] / geometry.valid[0]
    limits = [geometry.source[1], geometry.source[0]] * 2
    boxes = [
        [
            min(max((edge - start) * scale, 0), limit)
            for edge, start, scale, limit in zip(each.box, geometry.offset[::-1] * 2, (x, y, x, y), limits, strict=True)
        ]
        for each in expected
    ]
    inside = [(box, each) for box, each in zip(boxes, expected, strict=True) if box[2] > box[0] and box[3] > box[1]]
    assert len(found) == len(inside)
    for got, (box, each) in zip(found, inside, strict=True):
        assert got.score == pytest.approx(each.score, abs=1e-5)
        assert got.box == pytest.approx(box, abs=2e-2)
        assert got.class_id == each.kind + first and got.label == str(each.kind + first)


def rounded_apart(shape: tuple[int, ...], seed: int, low: float = 0.0, high: float = 1.0) -> FloatArray:
    """Return different random numbers in [low, high), none close to another, so that their order is certain."""
    count = math.prod(shape)
    values = np.random.default_rng(seed).permutation(count).astype(np.float64)
    return (low + (values + 0.5) / count * (high - low)).reshape(shape).astype(np.float32)
