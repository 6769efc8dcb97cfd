"""The decoder of FCOS equals torchvision's ``postprocess_detections``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding import detections_of
from torch import nn
from torchvision.models.detection import FCOS

from gemel.bundles.decode_specs import FcosDecode
from gemel.frames.preprocess import Geometry

LEVELS = ((12, 16, 8), (6, 8, 16), (3, 4, 32))
"""Height, width and stride of each level."""


@pytest.mark.parametrize("topk", [1000, 40])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_equals_torchvision(topk: int, threshold: float) -> None:
    backbone = nn.Module()
    backbone.out_channels = 32  # type: ignore[assignment]
    limits = {"topk_candidates": topk, "detections_per_img": 9999, "score_thresh": threshold, "nms_thresh": 0.5}
    model = FCOS(backbone, num_classes=4, **limits)
    anchors = torch.tensor(
        [
            [x * stride - stride / 2, y * stride - stride / 2, x * stride + stride / 2, y * stride + stride / 2]
            for height, width, stride in LEVELS
            for y in range(height)
            for x in range(width)
        ]
    )
    counts = [height * width for height, width, _ in LEVELS]
    random = torch.Generator().manual_seed(0)
    heads = {
        "cls_logits": torch.randn(1, len(anchors), 4, generator=random) * 2,
        "bbox_regression": torch.rand(1, len(anchors), 4, generator=random) * 3,
        "bbox_ctrness": torch.randn(1, len(anchors), 1, generator=random) * 2,
    }
    split = {key: list(values.split(counts, dim=1)) for key, values in heads.items()}
    # The frame covers 80 of 96 rows of the input.
    (theirs,) = model.postprocess_detections(split, [list(anchors.split(counts))], [(80, 128)])
    boxes, scores, labels = (theirs[key].numpy() for key in ("boxes", "scores", "labels"))
    area = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(axis=1)
    spec = FcosDecode(
        classes=4,
        anchors="anchors",
        levels=tuple(counts),
        topk=topk,
        score_threshold=threshold,
        nms_threshold=0.5,
        max_detections=9999,
    )
    outputs = {
        "logits": heads["cls_logits"].numpy(),
        "boxes": heads["bbox_regression"].numpy(),
        "centerness": heads["bbox_ctrness"].numpy(),
    }
    found = detections_of(
        spec, outputs, Geometry((160, 256), (96, 128), (80, 128)), tensors={"anchors": anchors.numpy()}
    )
    assert len(found) == area.sum() > 20
    assert [item.class_id for item in found] == labels[area].tolist()
    assert np.allclose([item.score for item in found], scores[area], atol=1e-6)
    assert np.allclose([item.box for item in found], boxes[area] * 2, atol=1e-3)
