"""Tests of runs over data sets: how many images are run at once."""

from __future__ import annotations

import pytest
import torch

from gemel.bundles.manifest import InputSpec
from gemel.frames.preprocess import Geometry
from gemel.merging.judging.running import batch_size
from gemel.workload.data import Images


@pytest.mark.parametrize(
    ("side", "judged", "for_statistics"),
    [(32, 128, 128), (64, 128, 128), (224, 10, 16), (320, 8, 16), (640, 2, 4), (800, 1, 3), (1600, 1, 2)],
)
def test_batches_take_as_much_memory_for_large_images_as_for_others(
    side: int, judged: int, for_statistics: int
) -> None:
    place = Geometry((side, side), (side, side), (side, side))
    images = Images(torch.zeros((1, 3, side, side), dtype=torch.uint8), (place,), InputSpec(size=(side, side)))
    assert batch_size(images) == judged
    assert batch_size(images, 16) == for_statistics
