"""The YOLO decoder equals the equations of the paper, computed cell by cell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemel.bundles.decode_specs import YoloDecode, YoloHead
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Detection

SIZE = (96, 128)
HEADS = (
    YoloHead(output="coarse", stride=32, anchors=((40, 60), (90, 30), (70, 80))),
    YoloHead(output="fine", stride=16, anchors=((10, 14), (25, 12))),
)

Found = tuple[list[float], float, int]
"""(box, score, class)."""


def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
    raise AssertionError(name)


def reference(
    outputs: dict[str, FloatArray], spec: YoloDecode, threshold: float, valid: tuple[int, int]
) -> list[Found]:
    """Return the detections of the paper's equations, best first."""

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    found = []
    for head in spec.heads:
        raw = outputs[head.output][0].reshape(len(head.anchors), 5 + spec.classes, *outputs[head.output].shape[2:])
        for anchor, (width, height) in enumerate(head.anchors):
            for y, x in np.ndindex(*raw.shape[2:]):
                values = raw[anchor, :, y, x].astype(float)
                cx, cy = (sigmoid(values[0]) + x) * head.stride, (sigmoid(values[1]) + y) * head.stride
                w, h = math.exp(values[2]) * width, math.exp(values[3]) * height
                box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                box = [min(max(edge, 0), valid[1 - index % 2]) for index, edge in enumerate(box)]
                for kind in range(spec.classes):
                    score = sigmoid(values[4]) * sigmoid(values[5 + kind])
                    if score > threshold and box[2] > box[0] and box[3] > box[1]:
                        found.append((box, score, kind))
    kept: list[Found] = []
    for candidate in sorted(found, key=lambda item: -item[1]):
        if all(other[2] != candidate[2] or overlap(other[0], candidate[0]) <= spec.nms_threshold for other in kept):
            kept.append(candidate)
    return kept[: spec.max_detections]


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("threshold", [None, 0.05, 0.6])
@pytest.mark.parametrize("valid", [SIZE, (54, 128)])
def test_equals_the_equations(classes: int, threshold: float | None, valid: tuple[int, int]) -> None:
    rng = np.random.default_rng(classes)
    spec = YoloDecode(classes=classes, score_threshold=0.25, nms_threshold=0.45, heads=HEADS)
    outputs = {
        head.output: rng.normal(
            0, 1.5, (1, len(head.anchors) * (5 + classes), SIZE[0] // head.stride, SIZE[1] // head.stride)
        ).astype(np.float32)
        for head in HEADS
    }
    # The frame is twice as large as the input.
    geometry = Geometry((valid[0] * 2, valid[1] * 2), SIZE, valid)
    result = build_decoder(spec, DecodeContext(lambda name: np.zeros(0, np.float32), None, threshold))(
        outputs, geometry, no_stage
    )
    expected = reference(outputs, spec, 0.25 if threshold is None else threshold, valid)
    assert len(result) == len(expected) > 0  # type: ignore[arg-type]
    for got, (box, score, kind) in zip(result, expected, strict=True):  # type: ignore[arg-type]
        assert isinstance(got, Detection) and got.label == str(kind)
        assert got.score == pytest.approx(score, abs=1e-5)
        assert got.box == pytest.approx([edge * 2 for edge in box], abs=1e-2)


def test_wild_values_stay_inside_the_frame() -> None:
    spec = YoloDecode(classes=1, heads=(YoloHead(output="out", stride=32, anchors=((30, 30),)),))
    outputs = {"out": np.full((1, 6, 3, 4), 1e4, np.float32)}
    result = build_decoder(spec, DecodeContext(lambda name: np.zeros(0, np.float32), ["thing"]))(
        outputs, Geometry(SIZE, SIZE, SIZE), no_stage
    )
    assert result == (Detection((0.0, 0.0, 128.0, 96.0), 1.0, "thing", 0),)
    outputs["out"][:] = np.nan
    assert (
        build_decoder(spec, DecodeContext(lambda name: outputs["out"]))(outputs, Geometry(SIZE, SIZE, SIZE), no_stage)
        == ()
    )
