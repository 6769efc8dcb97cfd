"""Operations on boxes equal those of torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from gemel.runtime.decode.boxes import best_of_each, clip, decode_deltas, highest, nms


def random_boxes(rng: np.random.Generator, count: int, extent: float = 300) -> np.ndarray:
    centers, sizes = rng.uniform(0, extent, (count, 2)), rng.uniform(1, extent / 3, (count, 2))
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], 1).astype(np.float32)


# Counts on both sides of the number up to which one call handles all classes.
@pytest.mark.parametrize("count", [1, 40, 500, 2000])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_equals_torchvision(count: int, threshold: float) -> None:
    rng = np.random.default_rng(count)
    boxes, scores = random_boxes(rng, count), rng.random(count).astype(np.float32)
    classes = rng.integers(0, 7, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, classes)), threshold).numpy()
    np.testing.assert_array_equal(nms(boxes, scores, classes, threshold, count), expected)
    np.testing.assert_array_equal(nms(boxes, scores, classes, threshold, 5), expected[:5])


def test_nms_of_nothing() -> None:
    empty = np.zeros(0, np.float32)
    assert nms(empty.reshape(0, 4), empty, np.zeros(0, np.intp), 0.5, 10).shape == (0,)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_equal_torchvision(weights: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(0)
    anchors = random_boxes(rng, 200)
    # The deltas vary enough that dw and dh reach their bound.
    deltas = rng.normal(0, 10, (200, 4)).astype(np.float32)
    expected = BoxCoder(weights).decode_single(torch.from_numpy(deltas), torch.from_numpy(anchors)).numpy()
    got = decode_deltas(deltas, anchors, weights)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


def test_clip_equals_torchvision() -> None:
    boxes = random_boxes(np.random.default_rng(0), 300, extent=150)
    expected = clip_boxes_to_image(torch.from_numpy(boxes.copy()), (60, 90))
    kept = clip(boxes, (0, 0, 90, 60), 1e-2)
    np.testing.assert_array_equal(boxes, expected.numpy())
    np.testing.assert_array_equal(kept, remove_small_boxes(expected, 1e-2).numpy())
    assert len(kept) < 300


def test_best_of_each_group() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.8, 0.7], np.float32)
    groups = np.array([0, 1, 1, 1, 0, 3])
    assert sorted(best_of_each(scores, groups, 2).tolist()) == [0, 1, 2, 4, 5]
    assert sorted(best_of_each(scores, groups, 9).tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(highest(scores, 2).tolist()) == [1, 4]
