"""Cutting of torchvision's Faster, Mask and Keypoint R-CNN into stages, between which the decoder chooses regions."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ...bundles.decode_specs import FasterRcnnDecode
from ...bundles.manifest import InputSpec
from ...errors import ModelError
from .one_stage import features_of, require_multiple
from .stages import BATCH, Cut, StageModule, attempt, example

__all__ = ["cut_faster_rcnn"]

InstancePart = Literal["mask", "keypoint"]
"""Result that a Mask R-CNN or Keypoint R-CNN gives for each box in addition to the class: a mask, or keypoints."""


class _Proposals(nn.Module):
    """Stage ``main`` of a Faster R-CNN: from an image to its features and proposals.

    Outputs are the features of the levels in ``roi_levels``, then objectness and box deltas of all feature levels.
    """

    def __init__(self, model: FasterRCNN, roi_levels: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.roi_levels = roi_levels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = features_of(self.model, image)
        objectness, deltas = self.model.rpn.head(features)
        return (*(features[level] for level in self.roi_levels), *objectness, *deltas)


class _RoiAlign(nn.Module):
    """Stage ``roi`` of a Faster R-CNN: RoIAlign, which pools the features of regions from one feature level.

    Regions are in pixels of that level, so that one program serves all levels.
    """

    def __init__(self, model: FasterRCNN, pool: MultiScaleRoIAlign) -> None:
        super().__init__()
        self.model = model
        self.output_size = tuple(pool.output_size)
        self.sampling_ratio = pool.sampling_ratio

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        indexed = torch.cat([torch.zeros_like(rois[:, :1]), rois], dim=1)
        pooled: Tensor = roi_align(features, indexed, self.output_size, 1.0, self.sampling_ratio)
        return pooled


class _BoxHead(nn.Module):
    """Stage ``head`` of a Faster R-CNN: from the pooled features of regions to class logits and box deltas."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.model.roi_heads
        logits, boxes = heads.box_predictor(heads.box_head(pooled))
        return logits, boxes


class _InstanceHead(nn.Module):
    """Stage ``mask`` of a Mask R-CNN or ``keypoint`` of a Keypoint R-CNN.

    From the pooled features of final boxes to a mask per class, or to a heatmap per keypoint.
    """

    def __init__(self, model: FasterRCNN, part: InstancePart) -> None:
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, pooled: Tensor) -> Tensor:
        heads = self.model.roi_heads
        head, predictor = getattr(heads, f"{self.part}_head"), getattr(heads, f"{self.part}_predictor")
        values: Tensor = predictor(head(pooled))
        return values


def cut_faster_rcnn(model: FasterRCNN, spec: InputSpec, part: InstancePart | None = None) -> Cut:
    """Cut a Faster R-CNN into the stages that :class:`FasterRcnnDecode` describes, with anchors for the input's size.

    Args:
        model: module with its weights.
        spec: input of the model.
        part: ``mask`` of a Mask R-CNN, or ``keypoint`` of a Keypoint R-CNN; None for boxes alone.

    Raises:
        ModelError: the model pools regions by another module than MultiScaleRoIAlign, or does not run on this size.
    """
    require_multiple(model, spec)
    heads, rpn = model.roi_heads, model.rpn
    pool = _pool(model, "box_roi_pool")
    image = example(spec)
    names, levels = _levels(model, image)
    roi_levels = tuple(index for index, name in enumerate(names) if name in pool.featmap_names)
    main = _Proposals(model, roi_levels)
    outputs = attempt(model, main, image)
    features = outputs[0][:1]
    pooled = torch.rand(5, features.shape[1], *pool.output_size, generator=torch.Generator().manual_seed(0))
    logits, _ = attempt(model, _BoxHead(model), pooled)
    count = range(len(names))
    instances, values = _instance_stages(model, features, part)
    decode = FasterRcnnDecode(
        classes=logits.shape[1] - 1,
        first_class=1,
        score_threshold=heads.score_thresh,
        nms_threshold=heads.nms_thresh,
        max_detections=heads.detections_per_img,
        anchors=tuple(f"anchors_{index}" for index in count),
        roi_levels=roi_levels,
        # torchvision infers scales from the frame before padding, which is wrong if most of the input is padding.
        roi_scales=tuple(2.0 ** round(math.log2(levels[index].shape[2] / spec.size[0])) for index in roi_levels),
        canonical_scale=pool.canonical_scale,
        canonical_level=pool.canonical_level,
        pre_nms_topk=rpn.pre_nms_top_n(),
        post_nms_topk=rpn.post_nms_top_n(),
        rpn_score_threshold=rpn.score_thresh,
        rpn_nms_threshold=rpn.nms_thresh,
        min_size=rpn.min_size,
        box_weights=tuple(heads.box_coder.weights),
        masks=part == "mask",
        keypoints=values if part == "keypoint" else 0,
    )
    proposals = (
        *(f"features_{index}" for index in roi_levels),
        *(f"objectness_{index}" for index in count),
        *(f"deltas_{index}" for index in count),
    )
    stages = {
        "main": StageModule(main, {"image": image}, proposals, BATCH),
        "roi": _roi_stage(model, pool, features),
        "head": StageModule(_BoxHead(model), {"pooled": pooled}, ("logits", "boxes"), {"pooled": {0: "rois"}}),
        **instances,
    }
    return Cut(stages, decode, spec, _anchors(model, image, levels))


def _pool(model: FasterRCNN, name: str) -> MultiScaleRoIAlign:
    """Return the module of an R-CNN that pools the features of regions, by its attribute name.

    Raises:
        ModelError: the module is not a MultiScaleRoIAlign.
    """
    pool = getattr(model.roi_heads, name)
    if not isinstance(pool, MultiScaleRoIAlign):
        raise ModelError(f"{type(model).__name__}: {name} is {type(pool).__name__}, not MultiScaleRoIAlign")
    return pool


def _roi_stage(model: FasterRCNN, pool: MultiScaleRoIAlign, features: Tensor) -> StageModule:
    """Return the stage of an R-CNN that pools the features of regions from one feature level."""
    rois = torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 0.5, 4.0, 4.5], [0.2, 1.0, 5.0, 3.0]])
    free = {"features": {2: "height", 3: "width"}, "rois": {0: "rois"}}
    return StageModule(_RoiAlign(model, pool), {"features": features, "rois": rois}, ("pooled",), free)


def _instance_stages(
    model: FasterRCNN, features: Tensor, part: InstancePart | None
) -> tuple[dict[str, StageModule], int]:
    """Return an R-CNN's two stages for masks or keypoints (pooling and head), and the number of channels per box.

    Raises:
        ModelError: masks or keypoints are pooled from other feature levels than boxes, which the decoder cannot do.
    """
    if part is None:
        return {}, 0
    pool, boxes = _pool(model, f"{part}_roi_pool"), _pool(model, "box_roi_pool")
    for field in ("featmap_names", "canonical_scale", "canonical_level"):
        if getattr(pool, field) != getattr(boxes, field):
            raise ModelError(f"{type(model).__name__}: {part}_roi_pool has another {field} than box_roi_pool")
    head = _InstanceHead(model, part)
    pooled = torch.rand(5, features.shape[1], *pool.output_size, generator=torch.Generator().manual_seed(0))
    values = attempt(model, head, pooled)
    output = "masks" if part == "mask" else "heatmaps"
    stages = {
        f"{part}_roi": _roi_stage(model, pool, features),
        part: StageModule(head, {"pooled": pooled}, (output,), {"pooled": {0: "rois"}}),
    }
    return stages, values.shape[1]


def _levels(model: FasterRCNN, image: Tensor) -> tuple[list[str], list[Tensor]]:
    """Return the names and the features of all feature levels of a Faster R-CNN's backbone."""
    features = attempt(model, model.backbone, image)
    if isinstance(features, Tensor):
        return ["0"], [features]
    return list(features), list(features.values())


def _anchors(model: FasterRCNN, image: Tensor, levels: list[Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return the anchors of a Faster R-CNN's feature levels, ``[H * W * A, 4]``, by their names in the decode spec."""
    generator = model.rpn.anchor_generator
    (anchors,) = generator(ImageList(image[:1], [tuple(image.shape[2:])]), levels)
    counts = [
        level.shape[2] * level.shape[3] * kinds
        for level, kinds in zip(levels, generator.num_anchors_per_location(), strict=True)
    ]
    return {f"anchors_{index}": part.numpy() for index, part in enumerate(anchors.split(counts))}
