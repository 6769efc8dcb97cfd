"""The CenterFace decoder equals the loop that is published with the model."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.bundles.decode_specs import CenterFaceDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Detection

SPEC = CenterFaceDecode(classes=1, score_threshold=0.2, nms_threshold=0.3, heatmap="h", scale="s", offset="o")
SIZE = (128, 160)


def decode(outputs: dict[str, FloatArray], threshold: float | None = None) -> tuple[Detection, ...]:
    def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
        raise AssertionError(name)

    decoder = build_decoder(SPEC, DecodeContext(lambda name: np.zeros(0, np.float32), ["face"], threshold))
    result = decoder(outputs, Geometry(SIZE, SIZE, SIZE), no_stage)
    assert isinstance(result, tuple)
    return tuple(item for item in result if isinstance(item, Detection))


def heads() -> dict[str, FloatArray]:
    rows, columns = SIZE[0] // 4, SIZE[1] // 4
    return {
        "h": np.zeros((1, 1, rows, columns), np.float32),
        "s": np.zeros((1, 2, rows, columns), np.float32),
        "o": np.zeros((1, 2, rows, columns), np.float32),
    }


def published(outputs: dict[str, FloatArray], threshold: float) -> list[tuple[list[float], float]]:
    heatmap, scale, offset = outputs["h"][0, 0], outputs["s"][0], outputs["o"][0]
    boxes = []
    for y, x in zip(*np.where(heatmap > threshold), strict=True):
        height, width = np.exp(scale[:, y, x]) * 4
        x1, y1 = (x + offset[1, y, x] + 0.5) * 4 - width / 2, (y + offset[0, y, x] + 0.5) * 4 - height / 2
        boxes.append(([x1, y1, x1 + width, y1 + height], float(heatmap[y, x])))
    kept: list[tuple[list[float], float]] = []
    for box, score in sorted(boxes, key=lambda item: -item[1]):
        if all(overlap(box, other) < 0.3 for other, _ in kept):
            kept.append((box, score))
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_equals_the_published_loop(threshold: float | None) -> None:
    rng = np.random.default_rng(0)
    outputs = heads()
    # Away from the edges: there the published loop moves boxes instead of clipping them.
    inner = (slice(8, -8), slice(8, -8))
    outputs["h"][0, 0][inner] = rng.random((16, 24)) ** 3
    outputs["s"][0] = rng.uniform(0.5, 2, outputs["s"].shape[1:])
    outputs["o"][0] = rng.uniform(0, 1, outputs["o"].shape[1:])
    expected = published(outputs, 0.2 if threshold is None else threshold)
    got = decode(outputs, threshold)
    assert len(got) == len(expected) > 10
    for item, (box, score) in zip(got, expected, strict=True):
        assert item.label == "face" and item.score == pytest.approx(score)
        assert item.box == pytest.approx(box, abs=1e-3)


def test_a_face_cut_by_the_edge_is_clipped() -> None:
    outputs = heads()
    outputs["h"][0, 0, 10, 1] = 0.9
    outputs["s"][0, :, 10, 1] = np.log([20 / 4, 16 / 4])
    # Centre (6, 42), 16 wide, 20 high.
    (face,) = decode(outputs)
    assert face.box == pytest.approx((0, 32, 14, 52), abs=1e-4)


def test_no_face() -> None:
    assert decode(heads()) == ()
