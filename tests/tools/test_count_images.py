"""Tests of counting the images that go through models."""

from __future__ import annotations

import pytest
import torch
from count_images import count_images
from torch import nn


def test_an_image_counts_once_for_each_model_that_it_goes_through() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with count_images() as count:
        model(torch.zeros(5, 3, 8, 8))
        with torch.no_grad():
            model(torch.zeros(2, 3, 8, 8))
            nn.Linear(3, 1)(torch.zeros(7, 3))
    assert (count.trained, count.only_run, count.all) == (5, 2, 7)
    model(torch.zeros(1, 3, 8, 8))
    assert count.all == 7


def test_a_call_that_fails_does_not_end_the_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with count_images() as count:
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 5, 8, 8))
        model(torch.zeros(4, 3, 8, 8))
    assert count.all == 5
