"""Preprocessing of frames, and boxes mapped back to the frame."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.bundles.manifest import InputSpec
from gemel.frames.preprocess import Geometry, preprocess

FRAME = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def test_normalised_planes() -> None:
    spec = InputSpec(size=(40, 60), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch, geometry = preprocess(FRAME, spec)
    expected = (FRAME[:, :, ::-1] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert batch.shape == (1, 3, 40, 60)
    assert batch.flags.c_contiguous
    np.testing.assert_allclose(batch[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)
    assert geometry == Geometry((40, 60), (40, 60), (40, 60))


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (0.5,)])
def test_gray(mean: tuple[float, ...]) -> None:
    batch, _ = preprocess(FRAME, InputSpec(size=(20, 30), color="gray", mean=mean))
    assert batch.shape == (1, 1, 20, 30)


def test_colour_order_and_scale() -> None:
    batch, _ = preprocess(FRAME, InputSpec(size=(40, 60), color="bgr", scale=1.0))
    np.testing.assert_array_equal(batch[0], FRAME.transpose(2, 0, 1))


def test_letterbox_keeps_the_aspect_ratio_and_boxes_find_back() -> None:
    batch, geometry = preprocess(FRAME, InputSpec(size=(96, 90), fit="letterbox", pad=0.25))
    assert geometry.valid == (60, 90)
    assert (batch[0, :, 60:] == 0.25).all()
    box = np.array([[15.0, 30.0, 90.0, 96.0]], np.float32)
    np.testing.assert_allclose(geometry.to_source(box), [[10, 20, 60, 40]])


def test_centred_letterbox_is_the_letterbox_moved() -> None:
    spec = InputSpec(size=(97, 90), fit="letterbox", pad=0.25)
    corner, at_corner = preprocess(FRAME, spec)
    centre, in_middle = preprocess(FRAME, spec.model_copy(update={"fit": "letterbox-center"}))
    assert in_middle.offset == (18, 0) and in_middle.area == (0, 18, 90, 78)
    np.testing.assert_array_equal(centre[..., 18:78, :], corner[..., :60, :])
    assert (centre[..., :18, :] == 0.25).all() and (centre[..., 78:, :] == 0.25).all()
    box = np.array([[15.0, 30.0, 90.0, 96.0]], np.float32)
    moved = box + np.array([0, 18, 0, 18], np.float32)
    np.testing.assert_allclose(in_middle.to_source(moved), at_corner.to_source(box))


@pytest.mark.parametrize(("rounding", "width"), [("nearest", 13), ("up", 14), ("down", 13)])
def test_letterboxed_sides_are_rounded_as_the_model_wants(rounding: str, width: int) -> None:
    spec = InputSpec(size=(9, 20), fit="letterbox").model_copy(update={"rounding": rounding})
    _, geometry = preprocess(FRAME[:, :59], spec)  # 13.275 pixels
    assert geometry.valid == (9, width)
    _, geometry = preprocess(FRAME, spec.model_copy(update={"size": (48, 300)}))
    assert geometry.valid == (48, 72)  # whole already
