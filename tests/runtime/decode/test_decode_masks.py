"""Masks and keypoints equal Ultralytics' formulas and torchvision's functions, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding import CENTRED, LETTERBOXED, SIZE, WHOLE, Array, detections_of
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, paste_masks_in_image

from gemel.bundles.decode_specs import EndToEndDecode, GridDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode.instance_masks import prototype_masks
from gemel.runtime.decode.roi_parts import heatmap_keypoints, pasted_masks

pytestmark = pytest.mark.usefixtures("one_thread")

PROTOTYPES = 5


def smooth(count: int, seed: int) -> Array:
    """Return random prototypes ``[count, 24, 32]`` without noise from cell to cell."""
    rough = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, count, 6, 8)).astype(np.float32))
    smoothed: Array = F.interpolate(rough, (24, 32), mode="bicubic")[0].numpy()
    return smoothed


def boxes_of(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(-10, 90, (count, 2)), rng.uniform(3, 60, (count, 2))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def reference_masks(coefficients: Array, prototypes: Array, boxes: Array, geometry: Geometry) -> Array:
    """Return masks ``[K, H, W]``: logits interpolated at the centre of each pixel of the frame, inside the box."""
    logits = torch.einsum("km,mhw->khw", torch.from_numpy(coefficients), torch.from_numpy(prototypes))
    (height, width), (in_height, in_width) = geometry.source, geometry.input
    top, left = geometry.offset
    x = ((np.arange(width) + 0.5) * geometry.valid[1] / width + left) / in_width * 2 - 1
    y = ((np.arange(height) + 0.5) * geometry.valid[0] / height + top) / in_height * 2 - 1
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32))[None]
    large = F.grid_sample(logits[None], grid, padding_mode="border", align_corners=False)[0].numpy()
    inside = large > 0
    for mask, (left, top, right, bottom) in zip(inside, geometry.to_source(boxes), strict=True):
        columns, rows = np.arange(width), np.arange(height)
        mask &= ((columns >= left) & (columns < right))[None] & ((rows >= top) & (rows < bottom))[:, None]
    return inside


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED, Geometry((300, 100), SIZE, (96, 32), (0, 48))])
def test_masks_of_prototypes(geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(30, PROTOTYPES)).astype(np.float32)
    prototypes, boxes = smooth(PROTOTYPES, 1), boxes_of(30, 2)
    expected = reference_masks(coefficients, prototypes, boxes, geometry)
    found = prototype_masks(coefficients, prototypes, boxes, geometry)
    assert sum(mask is not None for mask in found) > 8
    for got, want in zip(found, expected, strict=True):
        if got is None:
            assert not want.any()
        else:
            # A pixel whose logit is zero but for rounding may fall on either side.
            assert got.size == geometry.source and (got.array() != want).sum() <= 1


def test_a_mask_equals_the_sigmoid_at_the_input_size() -> None:
    rng = np.random.default_rng(3)
    coefficients, prototypes = rng.normal(size=(1, PROTOTYPES)).astype(np.float32), smooth(PROTOTYPES, 4)
    (mask,) = prototype_masks(coefficients, prototypes, np.array([[0, 0, 128, 96]], np.float32), WHOLE)
    logits = torch.tensordot(torch.from_numpy(coefficients[0]), torch.from_numpy(prototypes), 1)
    large = F.interpolate(logits[None, None], SIZE, mode="bilinear")[0, 0]
    assert mask is not None and ((large.sigmoid() > 0.5).numpy() != mask.array()).sum() <= 1


@pytest.mark.parametrize("kind", ["grid", "end-to-end"])
def test_detectors_with_masks(kind: str) -> None:
    prototypes = smooth(PROTOTYPES, 5)
    rng = np.random.default_rng(6)
    weights = rng.normal(size=(6, PROTOTYPES)).astype(np.float32)
    boxes = np.array([[10 + 18 * each, 10, 26 + 18 * each, 80] for each in range(6)], np.float32)
    scores = np.linspace(0.9, 0.4, 6, dtype=np.float32)[:, None]
    if kind == "grid":
        center = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
        rows = np.concatenate([center, scores, weights], axis=1)
        spec: GridDecode | EndToEndDecode = GridDecode(
            classes=1, output="o", transposed=True, objectness=False, masks=PROTOTYPES, prototypes="m"
        )
        output = rows.T[None]
    else:
        rows = np.concatenate([boxes, scores, np.zeros((6, 1), np.float32), weights], axis=1)
        spec, output = EndToEndDecode(classes=1, output="o", masks=PROTOTYPES, prototypes="m"), rows[None]
    found = detections_of(spec, {"o": output, "m": prototypes[None]}, LETTERBOXED)
    expected = [
        (score, mask)
        for score, mask in zip(scores[:, 0], reference_masks(weights, prototypes, boxes, LETTERBOXED), strict=True)
        if mask.any()
    ]
    assert len(found) == len(expected) > 3
    for got, (score, mask) in zip(found, expected, strict=True):
        assert got.score == pytest.approx(score) and got.mask is not None
        assert (got.mask.array() != mask).sum() <= 1


@pytest.mark.parametrize("geometry", [WHOLE, LETTERBOXED, CENTRED])
def test_pasted_masks(geometry: Geometry) -> None:
    logits = np.random.default_rng(7).normal(size=(20, 28, 28)).astype(np.float32)
    boxes = boxes_of(20, 8)
    left, top, right, bottom = geometry.area
    boxes[:, 0::2] = boxes[:, 0::2].clip(left, right)
    boxes[:, 1::2] = boxes[:, 1::2].clip(top, bottom)
    source = torch.from_numpy(geometry.to_source(boxes))
    theirs = paste_masks_in_image(torch.from_numpy(logits).sigmoid()[:, None], source, geometry.source)[:, 0].numpy()
    for got, want in zip(pasted_masks(logits, boxes, geometry), theirs, strict=True):
        assert (got.array() != (want > 0.5)).sum() <= 1


def test_keypoints_of_heatmaps() -> None:
    heatmaps = smooth(12, 9).reshape(4, 3, 24, 32)
    boxes = boxes_of(4, 10)
    # A box smaller than a pixel.
    boxes[3] = [5, 5, 5.25, 5.5]
    places, scores = heatmaps_to_keypoints(torch.from_numpy(heatmaps), torch.from_numpy(boxes))
    found = heatmap_keypoints(heatmaps, boxes)
    assert np.allclose(found[..., :2], places[..., :2].numpy(), atol=1e-3)
    assert np.allclose(found[..., 2], scores.sigmoid().numpy(), atol=1e-5)
