"""Detections equal those of torchvision's complete model: preprocessing, the cut model and the decoder together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, RetinaNet, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import Cut, as_tuple, cut
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Detection

# No normalisation, so that nothing is rounded: a random network turns the last bit of an input into a pixel. SSDLite
# has the usual normalisation.
EXACT = {"min_size": 120, "max_size": 160, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
# Tolerance in pixels: a random second stage turns the last bit of a proposal into a hundredth of a pixel.
REGION = 0.05
FRAME = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
PADDED = InputSpec(size=(128, 160))


pytestmark = pytest.mark.usefixtures("one_thread")


def liven(model: nn.Module, *heads: nn.Module) -> None:
    """Make a model with random weights behave like a trained one: normalise features, spread outputs of heads."""
    image = torch.randn(4, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train().momentum = 1.0
    with torch.no_grad():
        model.backbone(image)  # type: ignore[operator]
    model.eval()
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(_spread) for layer in layers if layer.bias is not None]
    with torch.no_grad():
        model(list(torch.rand(4, 3, 120, 160)))
    for hook in hooks:
        hook.remove()


def _spread(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Scale each output channel of a head to mean 0 and deviation 1.5 on the first level that the head sees."""
    if not hasattr(layer, "seen"):
        layer.seen = True  # type: ignore[assignment]
        assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
        channels = output.transpose(0, 1).flatten(1)
        factor = 1.5 / channels.std(1)
        layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.data = (layer.bias - channels.mean(1)) * factor
        mean, factor = (value.reshape(1, -1, *[1] * (output.ndim - 2)) for value in (channels.mean(1), factor))
        output = (output - mean) * factor
    return output


def ours(
    model: nn.Module,
    frame: np.ndarray,
    spec: InputSpec | None,
    threshold: float | None = None,
    stages: tuple[str, ...] = ("main",),
) -> list[Detection]:
    """Return the detections of this project, and check that exactly ``stages`` were run."""
    parts = cut(model, "detection", spec)
    image, geometry = preprocess(frame, parts.input)
    ran: list[str] = []

    def run(name: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        ran.append(name)
        return run_stage(parts, name, inputs)

    # Labels are the indices of classes, whatever the numbers of torchvision's classes.
    decode = parts.decode.model_copy(update={"first_class": 0})
    decoder = build_decoder(decode, DecodeContext(lambda name: np.asarray(parts.tensors[name]), None, threshold))
    result = decoder(run("main", {"image": image}), geometry, run)
    assert isinstance(result, tuple) and sorted(ran) == sorted(stages)
    return [item for item in result if isinstance(item, Detection)]


def run_stage(parts: Cut, name: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    stage = parts.stages[name]
    assert list(inputs) == list(stage.inputs)
    with torch.no_grad():
        outputs = as_tuple(stage.module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in inputs.values())))
    return {key: value.numpy() for key, value in zip(stage.outputs, outputs, strict=True)}


def assert_same(
    model: nn.Module, found: list[Detection], frame: np.ndarray, background: bool, tolerance: float = 1e-2
) -> None:
    """Check that ``found`` and torchvision's detections are the same.

    Classes are equal; scores (in percent) and boxes (in pixels) differ by less than ``tolerance``.
    """
    rgb = torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        (theirs,) = model([(rgb.double() * (1 / 255)).float()])
    boxes, scores, labels = (theirs[key].numpy() for key in ("boxes", "scores", "labels"))
    area = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(1)
    boxes, scores, labels = boxes[area], scores[area], labels[area]
    assert len(found) == len(boxes) > 20
    mine = np.array([[*item.box, item.score * 100, int(item.label) * 1000] for item in found])
    other = np.column_stack([boxes, scores * 100, (labels - int(background)) * 1000])
    distance = np.abs(mine[:, None] - other[None]).max(2)
    assert distance.min(0).max() < tolerance and distance.min(1).max() < tolerance
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_ssdlite() -> None:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6)
    liven(model, model.head)
    frame = np.random.default_rng(1).integers(0, 256, (320, 320, 3)).astype(np.uint8)
    assert_same(model, ours(model, frame, None), frame, background=True)
    # A query's threshold leaves out exactly the detections that score no more.
    model.score_thresh = 0.5
    assert_same(model, ours(model, frame, None, 0.5), frame, background=True)


@pytest.mark.parametrize("topk", [1000, 50])
def test_retinanet_letterboxed(topk: int) -> None:
    torch.manual_seed(0)
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    anchors = AnchorGenerator(((16, 24), (32, 48), (64, 96)), ((0.5, 1.0, 2.0),) * 3)
    # No limit, because torchvision's limit also counts boxes without area, which this project leaves out.
    limits = {"topk_candidates": topk, "detections_per_img": 9999}
    model = RetinaNet(backbone, num_classes=5, anchor_generator=anchors, **limits, **EXACT)
    liven(model, model.head)
    assert_same(model, ours(model, FRAME, PADDED), FRAME, background=False)


def test_faster_rcnn_letterboxed() -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    model = FasterRCNN(
        backbone,
        num_classes=4,
        **EXACT,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=150,
        # A small scale spreads the regions of a small frame over all four levels.
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=48),
    )
    liven(model, model.rpn, model.roi_heads)
    parts = cut(model, "detection", PADDED)
    assert parts.decode.roi_scales == (1 / 4, 1 / 8, 1 / 16, 1 / 32)  # type: ignore[union-attr]
    found = ours(model, FRAME, PADDED, stages=("main", "roi", "roi", "roi", "roi", "head"))
    assert_same(model, found, FRAME, background=True, tolerance=REGION)


def test_faster_rcnn_levels_of_one_scale_and_proposal_threshold() -> None:
    torch.manual_seed(0)
    # MobileNet's last two feature levels have the same stride.
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    model = FasterRCNN(
        backbone,
        num_classes=3,
        **EXACT,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64, 128),) * 3, ((0.5, 1.0, 2.0),) * 3),
        rpn_score_thresh=0.4,
        box_detections_per_img=30,
    )
    liven(model, model.rpn, model.roi_heads)
    assert_same(
        model, ours(model, FRAME, PADDED, stages=("main", "roi", "head")), FRAME, background=True, tolerance=REGION
    )
    model.rpn.score_thresh = 1.1
    assert ours(model, FRAME, PADDED) == []


def test_faster_rcnn_without_a_pyramid() -> None:
    torch.manual_seed(0)
    backbone = mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    model = FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64, 128),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_score_thresh=0.2,
        **EXACT,
    )
    liven(model, model.rpn, model.roi_heads)
    assert_same(
        model, ours(model, FRAME, PADDED, stages=("main", "roi", "head")), FRAME, background=True, tolerance=REGION
    )
