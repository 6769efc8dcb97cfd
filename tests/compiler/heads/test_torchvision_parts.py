"""Test the cuts of torchvision's FCOS, Mask R-CNN, Keypoint R-CNN and segmentation models."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, fcn_resnet50, lraspp_mobilenet_v3_large

from gemel.bundles.decode_specs import FasterRcnnDecode, FcosDecode, SegmentationDecode, SsdDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.compiler.recognition import OutputWords
from gemel.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = InputSpec.model_construct(_fields_set={"size"}, size=(64, 96))
UNTRAINED: Mapping[str, None] = {"weights": None, "weights_backbone": None}


def pyramid() -> nn.Module:
    """Make a small backbone with a feature pyramid."""
    made: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return made


def test_fcos() -> None:
    torch.manual_seed(0)
    parts = cut(FCOS(pyramid(), num_classes=4, score_thresh=0.3, topk_candidates=50), "detection", SIZE)
    stage = parts.stages["main"]
    assert stage.outputs == ("logits", "boxes", "centerness") and parts.input.fit == "letterbox"
    with torch.no_grad():
        logits, boxes, centerness = stage.module(stage.inputs["image"])
    decode = parts.decode
    assert isinstance(decode, FcosDecode)
    # One anchor per cell, as torchvision makes them; strides 4 to 64.
    assert decode.levels == (16 * 24, 8 * 12, 4 * 6, 2 * 3, 1 * 2) and sum(decode.levels) == logits.shape[1]
    assert parts.tensors[decode.anchors].shape == (logits.shape[1], 4)
    assert (logits.shape[2], boxes.shape[2], centerness.shape[2]) == (4, 4, 1)
    assert (decode.classes, decode.first_class) == (4, 0)
    assert (decode.score_threshold, decode.topk) == (0.3, 50)


def test_mask_and_keypoint_rcnn_have_two_more_stages() -> None:
    torch.manual_seed(0)
    for model, task, part, output in (
        (MaskRCNN(pyramid(), num_classes=3), "segmentation", "mask", "masks"),
        (KeypointRCNN(pyramid(), num_classes=2, num_keypoints=5), "pose", "keypoint", "heatmaps"),
    ):
        parts = cut(model, task, SIZE)
        assert list(parts.stages) == ["main", "roi", "head", f"{part}_roi", part]
        decode = parts.decode
        assert isinstance(decode, FasterRcnnDecode) and decode.first_class == 1
        assert (decode.masks, decode.keypoints) == (part == "mask", 5 if part == "keypoint" else 0)
        roi, stage = parts.stages[f"{part}_roi"], parts.stages[part]
        with torch.no_grad():
            pooled = roi.module(*roi.inputs.values())
            values = stage.module(pooled)
        assert pooled.shape[2:] == (14, 14) and stage.outputs == (output,)
        assert values.shape[1:] == ((3, 28, 28) if part == "mask" else (5, 56, 56))
        # Boxes alone need neither.
        assert list(cut(model, "detection", SIZE).stages) == ["main", "roi", "head"]
    model.roi_heads.keypoint_roi_pool.featmap_names = ["0"]
    with pytest.raises(ModelError, match="KeypointRCNN: keypoint_roi_pool has another featmap_names than box_roi_pool"):
        cut(model, "pose", SIZE)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (FasterRCNN, "segmentation", "FasterRCNN is a detector: its task is detection, not segmentation"),
        (MaskRCNN, "pose", "MaskRCNN is a detector: its task is detection or segmentation, not pose"),
        (
            KeypointRCNN,
            "classification",
            "KeypointRCNN is a detector: its task is detection or pose, not classification",
        ),
    ],
)
def test_other_tasks_of_detectors(model: type[FasterRCNN], task: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=message):
        cut(model(pyramid(), num_classes=2), task, SIZE)


def test_outputs_of_detectors_are_known() -> None:
    with torch.device("meta"):
        model = FCOS(pyramid(), num_classes=2)
    for words, key in ((OutputWords(outputs=["0"]), "model.outputs"), (OutputWords(decode="yolov8"), "decode")):
        with pytest.raises(ModelError, match=f"FCOS: {key} is not for torchvision's detectors"):
            cut(model, "detection", SIZE, words)


def test_classes_are_counted_as_torchvision_does() -> None:
    ssd = cut(ssdlite320_mobilenet_v3_large(**UNTRAINED, num_classes=3), "detection", SIZE).decode
    faster = cut(fasterrcnn_mobilenet_v3_large_320_fpn(**UNTRAINED, num_classes=3), "detection", SIZE).decode
    assert isinstance(ssd, SsdDecode) and isinstance(faster, FasterRcnnDecode)
    # Label 0 is the background.
    assert (ssd.classes, ssd.first_class, faster.classes, faster.first_class) == (2, 1, 2, 1)
    retina = cut(retinanet_resnet50_fpn(**UNTRAINED, num_classes=3), "detection", SIZE).decode
    assert isinstance(retina, SsdDecode)
    # RetinaNet's labels begin with the first class.
    assert (retina.classes, retina.first_class) == (3, 0)


def test_segmentation_uses_the_output_called_out() -> None:
    for make in (fcn_resnet50, deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large):
        extra = {} if make is lraspp_mobilenet_v3_large else {"aux_loss": True}
        parts = cut(make(**UNTRAINED, num_classes=3, **extra), "segmentation", SIZE)
        assert parts.stages["main"].outputs == ("out",)
        assert parts.decode == SegmentationDecode(output="out", classes=3, activation="softmax")
