"""Masks and keypoints equal Ultralytics' formulas and torchvision's functions, pixel by pixel."""

from __future__ import annotations

import math

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
    """Return masks ``[K, H, W]`` as Ultralytics' ``process_mask_native``, which cuts the frame out of the prototypes.

    Prototypes are enlarged first where the padding does not end between two of their cells.
    """
    logits = torch.einsum("km,mhw->khw", torch.from_numpy(coefficients), torch.from_numpy(prototypes))[None]
    (height, width), (top, left) = geometry.source, geometry.offset
    cell = geometry.input[0] // prototypes.shape[1]
    step = math.gcd(cell, *(a - b for a, b in zip(geometry.input, geometry.valid, strict=True)), top, left)
    if step < cell:
        logits = F.interpolate(logits, scale_factor=cell // step, mode="bilinear")
    rows, columns = (
        slice(at // step, (at + size) // step) for at, size in zip((top, left), geometry.valid, strict=True)
    )
    large = F.interpolate(logits[..., rows, columns], (height, width), mode="bilinear")[0].numpy()
    inside = large > 0
    for mask, (left, top, right, bottom) in zip(inside, geometry.to_source(boxes), strict=True):
        x, y = np.arange(width), np.arange(height)
        mask &= ((x >= left) & (x < right))[None] & ((y >= top) & (y < bottom))[:, None]
    return inside


def most_apart(mask: Array, geometry: Geometry) -> float:
    """Return the pixels that may differ: one whose logit is zero but for rounding may fall on either side.

    Where the padding ends inside a cell, Ultralytics interpolates twice, which moves the edges of masks slightly.
    """
    edges = (*geometry.offset, *(start + size for start, size in zip(geometry.offset, geometry.valid, strict=True)))
    return 1 if all(edge % 4 == 0 for edge in edges) else max(1, 0.06 * mask.sum())


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
            assert got.size == geometry.source and (got.array() != want).sum() <= most_apart(want, geometry)


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
        assert (got.mask.array() != mask).sum() <= most_apart(mask, LETTERBOXED)


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
