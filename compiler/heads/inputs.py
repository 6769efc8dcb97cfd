"""Default input of a model (image size, normalisation, colour), for settings that the workload leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models import Inception3, VisionTransformer
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.segmentation import LRASPP
from torchvision.models.segmentation._utils import _SimpleSegmentationModel

from ...bundles.manifest import InputSpec
from .libraries import library_input
from .stages import ZooModel

__all__ = ["input_defaults", "known_input"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of pixels from 0 to 1."""


def input_defaults(model: nn.Module) -> InputSpec:
    """Return the input that a model was made for: image size, normalisation and colour.

    The first of these that applies: a zoo model's own ``input_defaults``, the transform of a torchvision detector,
    timm's ``pretrained_cfg`` (with the size that the model was built for), the defaults of Ultralytics and Hugging Face
    (:func:`.libraries.library_input`), 299 x 299 for torchvision's Inception v3, the size that torchvision's vision
    transformer was built for, 520 x 928 with the aspect ratio kept for torchvision's segmentation, ImageNet's
    224 x 224. Mean and standard deviation are ImageNet's unless the model names its own.
    """
    known = known_input(model)
    if known is not None:
        return known
    if isinstance(model, LRASPP | _SimpleSegmentationModel):
        # torchvision scales the shorter side to 520 pixels, so that a frame of 16:9 is as large here as there.
        return InputSpec(size=(520, 928), mean=_MEAN, std=_STD, fit="letterbox")
    side = 299 if isinstance(model, Inception3) else 224
    if isinstance(model, VisionTransformer):
        side = model.image_size
    return InputSpec(size=(side, side), mean=_MEAN, std=_STD)


def known_input(model: nn.Module) -> InputSpec | None:
    """Return the input that a model itself describes; None if the model says nothing, so that it must be guessed."""
    if isinstance(model, ZooModel):
        return model.input_defaults()
    transform = getattr(model, "transform", None)
    if isinstance(transform, GeneralizedRCNNTransform):
        return _detector(transform)
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return _timm(model, config)
    return library_input(model)


def _detector(transform: GeneralizedRCNNTransform) -> InputSpec:
    mean, std = tuple(transform.image_mean), tuple(transform.image_std)
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return InputSpec(size=(height, width), mean=mean, std=std)
    # torchvision scales the shorter side to min_size and limits the longer one to max_size: a landscape frame gets the
    # same size here. A smaller input costs accuracy, so only the workload may ask for one.
    step = transform.size_divisible
    height, width = (math.ceil(side / step) * step for side in (transform.min_size[-1], transform.max_size))
    return InputSpec(size=(height, width), mean=mean, std=std, fit="letterbox")


def _timm(model: nn.Module, config: Mapping[str, Any]) -> InputSpec:
    channels, *size = config["input_size"]
    # The arguments in_chans and img_size of timm.create_model leave the configuration as it was.
    first = config.get("first_conv")
    layer = dict(model.named_modules()).get(first) if isinstance(first, str) else None
    if isinstance(layer, nn.Conv2d) and layer.in_channels == 1:
        channels = 1
    for owner in (model, getattr(model, "patch_embed", None), getattr(model, "stem", None)):
        built = getattr(owner, "img_size", None) or size
        size = [built, built] if isinstance(built, int) else built
    height, width = size
    return InputSpec(
        size=(height, width),
        mean=tuple(config.get("mean") or _MEAN)[:channels],
        std=tuple(config.get("std") or _STD)[:channels],
        color="gray" if channels == 1 else "rgb",
    )
