"""Tests of runs over data sets: how many images are run at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.frames.preprocess import Geometry
from gemel.merging.judging.running import batch_size, outputs_of, put_channels_last
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


class Flat(nn.Module):
    """Model that flattens what its convolution gives, as a view of the same memory or as a copy."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.view = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2), view

    def forward(self, image: Tensor) -> Tensor:
        made = self.conv(image)
        return self.linear(made.view(len(made), -1) if self.view else made.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("view", [False, True])
def test_a_model_runs_with_channels_last_only_where_it_can(view: bool) -> None:
    model, image = Flat(view).eval(), torch.rand(2, 3, 8, 8)
    (before,) = outputs_of(model, image)
    put_channels_last(model, image)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) != view
    for each in (model, copy.deepcopy(model)):
        torch.testing.assert_close(outputs_of(each, image)[0], before)
