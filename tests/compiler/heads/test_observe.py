"""Test what one watched run tells of a module: activations at its end, statistics of the batch, quantized layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemel.bundles.decode_specs import ClassificationDecode, SegmentationDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.compiler.heads.observe import observe
from gemel.compiler.recognition import OutputWords
from gemel.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Ending(nn.Module):
    """Classifier of four classes with an end of choice."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, 2)
        self.end = end

    def forward(self, image: Tensor) -> Any:
        return self.end(5 * self.conv(image).mean((2, 3)))


@pytest.mark.parametrize(
    ("end", "activation"),
    [
        (lambda x: x, None),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: F.softmax(x, 1).half().float().reshape(2, 4, 1, 1), "softmax"),
        (lambda x: nn.Sequential(nn.Softmax(1), nn.Identity(), nn.Flatten())(x), "softmax"),
        (lambda x: x.sigmoid().clamp(1e-4, 1 - 1e-4), "sigmoid"),
        (lambda x: x.sigmoid_(), "sigmoid"),
        (lambda x: torch.cat([x.sigmoid(), x.sigmoid()], 1), "sigmoid"),
        (lambda x: torch.cat([x.sigmoid(), x], 1), None),
        (lambda x: 2 * x.softmax(1), None),
        (lambda x: x.log_softmax(1), None),
        (lambda x: F.interpolate(x.softmax(1)[..., None, None], size=(4, 4), mode="bilinear"), "softmax"),
    ],
)
def test_activations_at_the_end(end: Callable[[Tensor], Any], activation: str | None) -> None:
    model = Ending(end).eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert observe(model, model, IMAGE).activations.get("output") == activation


def test_class_numbers() -> None:
    model = Ending(lambda x: {"number": x.argmax(1), "scores": x.softmax(1)})
    seen = observe(model, model, IMAGE)
    assert seen.classes == {"number": 4} and seen.activations == {"scores": "softmax"}
    parts = cut(Ending(lambda x: x.argmax(1)), "classification", InputSpec(size=(16, 16)))
    assert isinstance(parts.decode, ClassificationDecode)
    assert parts.decode.class_numbers and parts.decode.classes == 4


def spec_of(model: nn.Module, words: OutputWords = OutputWords()) -> ClassificationDecode:  # noqa: B008
    """Cut a classifier and return its decoder."""
    decode = cut(model, "classification", InputSpec(size=(16, 16)), words).decode
    assert isinstance(decode, ClassificationDecode)
    return decode


def test_no_activation_is_applied_twice() -> None:
    assert spec_of(Ending(lambda x: x)).activation == "softmax"
    assert spec_of(Ending(lambda x: x.softmax(1))).activation == "none"
    several = spec_of(Ending(lambda x: x.sigmoid()))
    assert several.activation == "none" and several.multi_label
    assert spec_of(Ending(lambda x: x), OutputWords(activation="sigmoid")).multi_label
    binary = spec_of(Ending(lambda x: x, classes=1))
    assert binary.classes == 1 and binary.activation == "sigmoid"
    assert spec_of(Ending(lambda x: x.sigmoid(), classes=1)).activation == "none"
    pixels = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Sigmoid())
    found = cut(pixels, "segmentation", InputSpec(size=(16, 16))).decode
    assert found == SegmentationDecode(output="output", classes=1, activation="none")


class Awake(nn.Module):
    """Module that goes back to training mode whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, image: Tensor) -> Tensor:
        self.train()
        pooled: Tensor = self.body(image).mean((2, 3))
        return pooled


def test_statistics_of_the_batch_are_refused() -> None:
    spec = InputSpec(size=(16, 16))
    with pytest.raises(ModelError, match=r"Awake: layer body.1 is in training mode.*do not call train"):
        cut(Awake(), "classification", spec)
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ModelError, match=r"Sequential: layer 1 is in training mode.*track_running_stats=True"):
        cut(untracked, "embedding", spec)
    by_hand = Ending(lambda x: F.batch_norm(x, None, None, training=True))
    with pytest.raises(ModelError, match="Ending: a batch_norm is in training mode"):
        cut(by_hand, "classification", spec)


def test_statistics_of_one_image_are_not_refused() -> None:
    class Standardised(nn.Conv2d):
        """Convolution with weight standardisation, as in timm's normaliser-free networks."""

        def forward(self, image: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(image, weight, self.bias)

    model = nn.Sequential(Standardised(3, 4, 3), nn.InstanceNorm2d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    assert cut(model, "embedding", InputSpec(size=(16, 16))).stages["main"].outputs == ("embedding",)


def test_quantized_layers_are_refused_by_name() -> None:
    # PyTorch has deprecated the real layers and warns of each use.
    linear = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})
    adding = type("FloatFunctional", (nn.Identity,), {"__module__": "torch.ao.nn.quantized.modules.functional_modules"})
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    message = r"Sequential: layer 2 is quantized \(torch.ao.nn.quantized.dynamic.*--precision int8"
    with pytest.raises(ModelError, match=message):
        cut(nn.Sequential(*flat, linear(4 * 14 * 14, 2)), "classification", InputSpec(size=(16, 16)))
    assert spec_of(nn.Sequential(*flat, adding(), nn.Linear(4 * 14 * 14, 2))).classes == 2


def test_models_of_clips_are_refused() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"Sequential takes clips.*\[N, C, T, H, W\].*layer 0 \(Conv3d\).*one frame"):
        cut(model, "classification", InputSpec(size=(16, 16)))
