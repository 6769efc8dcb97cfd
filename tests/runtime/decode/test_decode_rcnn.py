"""The decoder of Mask R-CNN and Keypoint R-CNN equals torchvision's complete models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from decoding import detections_of
from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from gemel.bundles.decode_specs import FasterRcnnDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Detection

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (128, 160)
"""Height and width of the frame and of the input in pixels."""
SIDES = (8, 16, 32, 64, 128)
"""Side of the anchors of each level in input pixels."""


def model_of(kind: str) -> Any:
    """Return a model with random weights whose scores and regions differ from place to place."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    settings = {
        "box_detections_per_img": 10,
        "box_score_thresh": 0.1,
        "min_size": 128,
        "max_size": 160,
        "rpn_anchor_generator": AnchorGenerator(tuple((side,) for side in SIDES), ((0.5, 1.0, 2.0),) * 5),
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
    }
    model = (MaskRCNN if kind == "mask" else KeypointRCNN)(backbone, num_classes=3, **settings)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train().momentum = 1.0
    image = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.backbone(image)
    model.eval()
    parts = [model.rpn.head.cls_logits, model.rpn.head.bbox_pred]
    parts += [model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred]
    for layer in parts:
        layer.register_forward_hook(spread)
    with torch.no_grad():
        model(list(torch.rand(2, 3, *SIZE)))
    return model


def spread(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Scale the outputs of a layer to a deviation of 1, by a factor that is found at the first call."""
    factor = getattr(layer, "factor", None)
    if factor is None:
        factor = layer.factor = (1 / output.std()).item()  # type: ignore[assignment]
    return output * factor


class Stages:
    """Stages of a model as :class:`FasterRcnnDecode` describes them."""

    def __init__(self, model: Any) -> None:
        self.model, self.ran = model, list[str]()

    def __call__(self, name: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        self.ran.append(name)
        heads = self.model.roi_heads
        tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in inputs.values()]
        with torch.no_grad():
            if name.endswith("roi"):
                assert list(inputs) == ["features", "rois"]
                side = 7 if name == "roi" else 14
                found = {"pooled": roi_align(tensors[0], [tensors[1]], side, 1.0, 2)}
            elif name == "head":
                logits, boxes = heads.box_predictor(heads.box_head(tensors[0]))
                found = {"logits": logits, "boxes": boxes}
            elif name == "mask":
                found = {"masks": heads.mask_predictor(heads.mask_head(tensors[0]))}
            else:
                assert name == "keypoint"
                found = {"heatmaps": heads.keypoint_predictor(heads.keypoint_head(tensors[0]))}
        return {key: value.numpy() for key, value in found.items()}

    def main(self, image: Tensor) -> dict[str, FloatArray]:
        """Return the outputs of stage ``main``, with the anchors of each level."""
        with torch.no_grad():
            features = list(self.model.backbone(image).values())
            objectness, deltas = self.model.rpn.head(features)
            (anchors,) = self.model.rpn.anchor_generator(ImageList(image, [SIZE]), features)
        split = anchors.split([each[0].numel() for each in objectness])
        named = {"features": features, "objectness": objectness, "deltas": deltas, "anchors": split}
        return {f"{key}_{level}": part.numpy() for key, parts in named.items() for level, part in enumerate(parts)}


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_equals_torchvision(kind: str) -> None:
    model = model_of(kind)
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    stages = Stages(model)
    outputs = stages.main(image)
    spec = FasterRcnnDecode(
        classes=2,
        score_threshold=0.1,
        max_detections=10,
        anchors=tuple(f"anchors_{level}" for level in range(5)),
        roi_levels=(0, 1, 2, 3),
        roi_scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32),
        masks=kind == "mask",
        keypoints=0 if kind == "mask" else 17,
        first_class=1,
    )
    decoder = build_decoder(spec, DecodeContext(outputs.__getitem__))
    # The frame is twice as large as the input.
    found = decoder(outputs, Geometry((256, 320), SIZE, SIZE), stages)
    assert isinstance(found, tuple) and stages.ran[-2:] == [f"{kind}_roi", kind]
    with torch.no_grad():
        features = model.backbone(image)
        frames = ImageList(image, [SIZE])
        proposals, _ = model.rpn(frames, features)
        found_by_torchvision, _ = model.roi_heads(features, proposals, [SIZE])
        (theirs,) = model.transform.postprocess(found_by_torchvision, [SIZE], [(256, 320)])
    assert len(found) == len(theirs["boxes"]) >= 5
    for row, got in enumerate(found):
        assert isinstance(got, Detection)
        want = {key: values[row].numpy() for key, values in theirs.items()}
        assert np.allclose(got.box, want["boxes"], atol=0.05) and got.class_id == want["labels"]
        if kind == "mask":
            assert got.mask is not None
            ours, right = got.mask.array(), want["masks"][0] > 0.5
            assert (ours != right).sum() <= 0.01 * right.sum() + 2
        else:
            places = np.array(got.keypoints)
            assert np.allclose(places[:, :2], want["keypoints"][:, :2], atol=0.1)
            assert np.allclose(places[:, 2], 1 / (1 + np.exp(-want["keypoints_scores"])), atol=0.01)


def test_no_box_runs_no_further_stage() -> None:
    spec = FasterRcnnDecode(classes=1, anchors=("a",), roi_levels=(0,), roi_scales=(0.25,), masks=True, keypoints=3)
    outputs = {
        "objectness_0": np.full((1, 1, 2, 2), np.nan, np.float32),
        "deltas_0": np.full((1, 4, 2, 2), np.nan, np.float32),
        "features_0": np.zeros((1, 3, 2, 2), np.float32),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detections_of(spec, outputs, tensors={"a": np.tile(np.array([0, 0, 8, 8], np.float32), (4, 1))}) == []
