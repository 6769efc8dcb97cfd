"""Cutting of torchvision's one-stage detectors (SSD, SSDLite, RetinaNet, FCOS) where decoding begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from ...bundles.decode_specs import FcosDecode, SsdDecode
from ...bundles.manifest import InputSpec
from ...errors import ModelError
from .stages import BATCH, Cut, StageModule, attempt, example

__all__ = ["cut_fcos", "cut_one_stage", "features_of", "require_multiple"]


class _RawHeads(nn.Module):
    """Stage ``main`` of an SSD or RetinaNet, without decoding.

    From a normalised ``image [N, 3, H, W]`` to ``logits [N, A, classes]`` and ``boxes [N, A, 4]`` of A anchors.
    """

    def __init__(self, model: SSD | RetinaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.model.head(features_of(self.model, image))
        return heads["cls_logits"], heads["bbox_regression"]


def cut_one_stage(model: SSD | RetinaNet, spec: InputSpec) -> Cut:
    """Cut an SSD or RetinaNet after its heads, before decoding, and compute the anchors for the input's size.

    torchvision's RetinaNet has no background class: its class 0 is the first of ``num_classes``. With the published
    COCO weights, class 0 is ``__background__``, which never scores.

    Args:
        model: module with its weights.
        spec: input of the model.

    Raises:
        ModelError: the model does not run on an input of this size.
    """
    require_multiple(model, spec)
    image = example(spec)
    module = _RawHeads(model)
    logits, _ = attempt(model, module, image)
    anchors, levels = _anchors(model, image)
    is_ssd = isinstance(model, SSD)
    decode = SsdDecode(
        classes=logits.shape[2] - int(is_ssd),
        first_class=int(is_ssd),
        score_threshold=model.score_thresh,
        nms_threshold=model.nms_thresh,
        max_detections=model.detections_per_img,
        anchors="anchors",
        activation="softmax" if is_ssd else "sigmoid",
        background=is_ssd,
        box_weights=tuple(model.box_coder.weights),
        levels=() if is_ssd else levels,
        topk=model.topk_candidates,
        per_class=is_ssd,
    )
    stage = StageModule(module, {"image": image}, ("logits", "boxes"), BATCH)
    return Cut({"main": stage}, decode, spec, {"anchors": anchors})


class _FcosHeads(nn.Module):
    """Stage ``main`` of FCOS: from a normalised ``image [N, 3, H, W]`` to ``logits``, ``boxes`` and ``centerness``."""

    def __init__(self, model: FCOS) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.model.head(features_of(self.model, image))
        return heads["cls_logits"], heads["bbox_regression"], heads["bbox_ctrness"]


def cut_fcos(model: FCOS, spec: InputSpec) -> Cut:
    """Cut torchvision's FCOS after its heads, before decoding, and compute one anchor per cell for the input's size.

    FCOS has no background class of its own, as RetinaNet; with the published COCO weights, class 0 never scores.

    Args:
        model: module with its weights.
        spec: input of the model.

    Raises:
        ModelError: the model does not run on an input of this size.
    """
    require_multiple(model, spec)
    image = example(spec)
    module = _FcosHeads(model)
    logits, _, _ = attempt(model, module, image)
    anchors, levels = _anchors(model, image)
    decode = FcosDecode(
        classes=logits.shape[2],
        score_threshold=model.score_thresh,
        nms_threshold=model.nms_thresh,
        max_detections=model.detections_per_img,
        anchors="anchors",
        levels=levels,
        topk=model.topk_candidates,
    )
    stage = StageModule(module, {"image": image}, ("logits", "boxes", "centerness"), BATCH)
    return Cut({"main": stage}, decode, spec, {"anchors": anchors})


def _anchors(model: Any, image: Tensor) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Return the anchors of a one-stage detector, ``[A, 4]``, and the number of anchors per feature level."""
    features = attempt(model, _Features(model), image)
    with torch.no_grad():
        (anchors,) = model.anchor_generator(ImageList(image[:1], [tuple(image.shape[2:])]), features)
    kinds = model.anchor_generator.num_anchors_per_location()
    levels = (feature.shape[2] * feature.shape[3] * kind for feature, kind in zip(features, kinds, strict=True))
    return anchors.numpy(), tuple(levels)


class _Features(nn.Module):
    """Module that runs the backbone of a torchvision detector: from an image to the list of its feature levels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        return features_of(self.model, image)


def features_of(model: Any, image: Tensor) -> list[Tensor]:
    """Return the feature levels of a torchvision detector; a backbone without a pyramid has one level."""
    features = model.backbone(image)
    return [features] if isinstance(features, Tensor) else list(features.values())


def require_multiple(model: Any, spec: InputSpec) -> None:
    """Refuse an input size that a torchvision detector would pad, because anchors would then lie elsewhere.

    Raises:
        ModelError: a side of the input is not a multiple of the number of pixels that the detector needs.
    """
    step = model.transform.size_divisible
    if any(side % step for side in spec.size):
        raise ModelError(f"input.size {list(spec.size)}: {type(model).__name__} needs multiples of {step}")
