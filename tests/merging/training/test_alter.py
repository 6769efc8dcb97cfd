"""Tests of altered training images."""

from __future__ import annotations

import torch

from gemel.merging.training.alter import shifted


def test_each_image_is_shifted_by_up_to_an_eighth_of_its_side() -> None:
    image = torch.arange(64.0).expand(32, 1, 16, 64).contiguous()
    found = shifted(image, torch.Generator().manual_seed(0))
    assert found.shape == image.shape
    # The columns of a ramp tell how far it was shifted: those in the middle come from one side or the other.
    moved = (found[:, 0, 0, 32] - 32).int().tolist()
    assert {-8, 8} & set(moved) and all(abs(each) <= 8 for each in moved) and len(set(moved)) > 5
    assert torch.equal(found[:, 0, 0, 31] + 1, found[:, 0, 0, 32])


def test_the_border_is_mirrored_and_a_seed_repeats_it() -> None:
    image = torch.rand(8, 3, 8, 8)
    first, again = (shifted(image, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, image)
    for each, before in zip(first, image, strict=True):
        assert all(bool((before == value).any()) for value in each.flatten())
