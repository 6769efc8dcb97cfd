"""What a model was trained to see, where the workload does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models import Inception3
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ...bundles.manifest import InputSpec
from .stages import ZooModel

__all__ = ["input_defaults"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def input_defaults(model: nn.Module) -> InputSpec:
    """The input a model was made for.

    In this order: what a zoo model says; the transform of a torchvision detector; timm's ``pretrained_cfg``;
    torchvision's Inception v3 at 299 x 299; ImageNet's 224 x 224. Means and deviations are ImageNet's unless
    the model knows better.
    """
    if isinstance(model, ZooModel):
        return model.input_defaults()
    transform = getattr(model, "transform", None)
    if isinstance(transform, GeneralizedRCNNTransform):
        return _detector(transform)
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return _timm(config)
    size = (299, 299) if isinstance(model, Inception3) else (224, 224)
    return InputSpec(size=size, mean=_MEAN, std=_STD)


def _detector(transform: GeneralizedRCNNTransform) -> InputSpec:
    mean, std = tuple(transform.image_mean), tuple(transform.image_std)
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return InputSpec(size=(height, width), mean=mean, std=std)
    # torchvision scales the shorter side to min_size and bounds the longer one by max_size: a landscape frame
    # comes out as large here as there. A smaller input is for the workload to ask for, as it costs accuracy.
    step = transform.size_divisible
    height, width = (math.ceil(side / step) * step for side in (transform.min_size[-1], transform.max_size))
    return InputSpec(size=(height, width), mean=mean, std=std, fit="letterbox")


def _timm(config: Mapping[str, Any]) -> InputSpec:
    channels, height, width = config["input_size"]
    return InputSpec(
        size=(height, width),
        mean=tuple(config.get("mean") or _MEAN)[:channels],
        std=tuple(config.get("std") or _STD)[:channels],
        color="gray" if channels == 1 else "rgb",
    )
