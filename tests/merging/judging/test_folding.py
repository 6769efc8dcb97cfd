"""Tests of folding BatchNorms into the convolutions before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from gemel.merging.judging.folding import folded


class Part(nn.Module):
    """Convolution and BatchNorm with random statistics, put together by a function of both and the image."""

    def __init__(self, run: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.run = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), run
        for value in (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias):
            assert value is not None
            nn.init.uniform_(value, 0.5, 2.0)

    def forward(self, image: Tensor) -> Tensor:
        return self.run(self.conv, self.norm, image)


def norms(module: nn.Module) -> int:
    """Return the number of BatchNorms of a module."""
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32)


def test_a_model_without_its_norms_gives_the_same_outputs(image: Tensor) -> None:
    model = mobilenet_v2(num_classes=5).eval()
    with torch.inference_mode():
        found = folded(model, image[:1])
        assert norms(found) == 0 and norms(model) == 52
        torch.testing.assert_close(found(image), model(image))


def test_a_norm_folds_whose_statistics_are_far_from_none(image: Tensor) -> None:
    model = Part(lambda conv, norm, image: norm(conv(image)).relu()).eval()
    found = folded(model, image)
    assert norms(found) == 0
    torch.testing.assert_close(found(image), model(image))


@pytest.mark.parametrize(
    "run",
    [
        lambda conv, norm, image: norm(conv(image).relu_()),
        lambda conv, norm, image: norm(conv(image).relu()),
        lambda conv, norm, image: norm(conv(image)) + conv(image.flip(3)),
        lambda conv, norm, image: norm(made := conv(image)) + made,
        lambda conv, norm, image: norm(conv(image)) * norm.weight[:, None, None],
        lambda conv, norm, image: norm(conv(image)[:, :, 1:]),
    ],
    ids=["in place", "between", "twice", "taken twice", "read", "cut"],
)
def test_what_does_not_fold_stays(run: Callable[[nn.Module, nn.Module, Tensor], Tensor], image: Tensor) -> None:
    model = Part(run).eval()
    assert folded(model, image) is model
