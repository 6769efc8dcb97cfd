"""Test the trace of a model's layers."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TinyTransformer, tiny
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, ssdlite320_mobilenet_v3_large

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.merging.models.trace import LayerTrace, hooked, trace_layers


def traced(model: nn.Module, task: str = "classification", size: int = 32) -> LayerTrace:
    """Cut a model for square images of ``size`` pixels and trace it."""
    spec = InputSpec.model_construct(_fields_set={"size"}, size=(size, size))
    return trace_layers(cut(model, task, spec))


class Odd(nn.Module):
    """A model that runs layers in another order than it lists them, one twice, one never, and ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.auxiliary = nn.Linear(8, 5)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = self.again(self.again(x))
        x = self.norm2(torch.relu_(self.plain(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores.softmax(1)


def test_hooks_are_gone_afterwards() -> None:
    layers = [nn.Linear(3, 3), nn.Linear(3, 2)]
    seen: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = []
    model, x = nn.Sequential(*layers), torch.zeros(1, 3)
    with (
        pytest.raises(KeyboardInterrupt),
        hooked(layers, lambda layer, taken, made: seen.append((layer, tuple(taken[0].shape), tuple(made.shape)))),
    ):
        model(x)
        raise KeyboardInterrupt
    model(x)
    assert seen == [(layers[0], (1, 3), (1, 3)), (layers[1], (1, 3), (1, 2))]


def test_order_norms_and_heads() -> None:
    found = traced(tiny())
    assert found.order == ("stem", "depthwise", "pointwise", "head")
    assert found.norm_of == {"stem": "norm1", "depthwise": "norm2", "pointwise": "norm3"}
    assert found.heads == {"head"}


def test_the_order_is_that_of_running() -> None:
    found = traced(Odd())
    assert found.order == ("stem", "again", "plain", "head")
    assert found.heads == {"head"}


def test_a_norm_behind_an_activation_is_not_that_of_the_convolution() -> None:
    assert traced(Odd()).norm_of == {"stem": "norm"}


def test_frozen_weights_are_traced_too() -> None:
    model = tiny().requires_grad_(False)
    assert traced(model).heads == {"head"}
    assert all(value.grad is None for value in model.parameters())


def test_products_of_a_transformer() -> None:
    found = traced(TinyTransformer())
    assert found.order == ("patches", "mix.0", "mix.2", "head")
    assert found.heads == {"head"}


def test_an_embedding_behind_a_norm_has_no_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert traced(model, "embedding").heads == frozenset()


def test_what_a_later_stage_takes_is_no_output_of_the_model() -> None:
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    found = traced(model, "detection", 96)
    assert found.heads == {
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    }
    assert {"roi_heads.box_head.fc6", "backbone.fpn.layer_blocks.0.0"} <= set(found.order)


def test_heads_of_a_one_stage_detector() -> None:
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    heads = traced(model, "detection", 96).heads
    assert len(heads) == 12  # classes and boxes on six levels
    assert all(name.startswith("head.") for name in heads)
