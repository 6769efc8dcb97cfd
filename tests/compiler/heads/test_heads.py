from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models import VisionTransformer, inception_v3, resnet18, squeezenet1_1
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.ops import FrozenBatchNorm2d

from gemel.bundles.decode_specs import ClassificationDecode, DecodeSpec, EmbeddingDecode, FasterRcnnDecode, SsdDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import StageModule, as_tuple, cut, input_defaults, thaw_batch_norm
from gemel.errors import ModelError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNTRAINED: Mapping[str, None] = {"weights": None, "weights_backbone": None}


pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(nn.Module):
    """Convolution that stands for any architecture; ``answer`` chooses the form of its output."""

    def __init__(self, channels: int = 3, answer: str = "vector") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, 2)
        self.answer = answer

    def forward(self, image: Tensor) -> object:
        x = self.conv(image)
        return {"map": x, "vector": x.mean((2, 3)), "tokens": x.flatten(2), "dict": {"logits": x}}[self.answer]


class Zoo(Tiny):
    output_names: tuple[str, ...] = ("map",)

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        decode = SsdDecode(
            classes=1, anchors="grid", activation="sigmoid", background=False, box_weights=(1.0, 1.0, 1.0, 1.0)
        )
        return decode, {"grid": np.full((4, 4), size[0], np.float32)}

    def input_defaults(self) -> InputSpec:
        return InputSpec(size=(32, 64), color="bgr", scale=1.0)


def test_classification() -> None:
    model = resnet18(num_classes=7).train()
    parts = cut(model, "classification")
    assert parts.decode == ClassificationDecode(classes=7, top_k=5)
    assert parts.input == InputSpec(size=(224, 224), mean=IMAGENET[0], std=IMAGENET[1])
    stage = parts.stages["main"]
    assert stage.outputs == ("logits",) and stage.free == {"image": {0: "batch"}} and not model.training
    assert {name.removeprefix("model.") for name in stage.module.state_dict()} == set(model.state_dict())
    assert cut(Tiny(3), "classification", InputSpec(size=(8, 8))).decode == ClassificationDecode(classes=3, top_k=3)


def test_embedding() -> None:
    for answer in ("vector", "map"):
        parts = cut(Tiny(answer=answer), "embedding", InputSpec(size=(16, 16)))
        assert isinstance(parts.decode, EmbeddingDecode) and parts.stages["main"].outputs == ("embedding",)
    features = squeezenet1_1().features
    assert isinstance(cut(features, "embedding", InputSpec(size=(64, 64))).decode, EmbeddingDecode)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (
            Tiny(answer="dict"),
            "classification",
            r"Tiny: no decoder for .*logits float32 \[1, 3, 7, 7\]",
        ),
        (Tiny(answer="map"), "classification", r"no decoder for .*classification.*\[1, 3, 7, 7\]"),
        (Tiny(answer="tokens"), "embedding", r"no decoder for .*embedding.*\[1, 3, 49\]"),
        (Tiny(), "detection", r"Tiny: no decoder for .*detection.*\[1, 3\]"),
        (Tiny(), "segmentation", r"Tiny: no decoder for .*segmentation.*\[1, 3\]"),
        (Zoo(), "classification", "Zoo is for the task detection, not classification"),
        (Zoo(), "segmentation", "Zoo is for the task detection, not segmentation"),
        (nn.Conv2d(1, 1, 3), "embedding", r"Conv2d does not run on an input of shape \[2, 3, 16, 16\].*model.input"),
    ],
)
def test_refuses_what_it_cannot_read(model: nn.Module, task: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        cut(model, task, InputSpec(size=(16, 16)))


def test_zoo() -> None:
    parts = cut(Zoo(answer="map"), "detection")
    assert parts.input.color == "bgr" and parts.stages["main"].outputs == ("map",)
    assert parts.tensors["grid"][0, 0] == 32
    model = Zoo(answer="map")
    model.output_names = ("map", "more")
    with pytest.raises(ModelError, match="gives 1 outputs and names 2: map, more"):
        cut(model, "detection")


def test_input_is_the_models_unless_the_workload_says_otherwise() -> None:
    assert input_defaults(Zoo()).size == (32, 64)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert input_defaults(vit) == InputSpec(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    for name in ("vit_tiny_patch16_224", "mixer_s32_224"):
        assert input_defaults(timm.create_model(name, img_size=96, num_classes=0)).size == (96, 96)
    gray = input_defaults(timm.create_model("resnet18", in_chans=1))
    assert (gray.color, gray.mean, gray.std) == ("gray", IMAGENET[0][:1], IMAGENET[1][:1])
    vit = VisionTransformer(image_size=64, patch_size=32, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
    assert input_defaults(vit) == InputSpec(size=(64, 64), mean=IMAGENET[0], std=IMAGENET[1])
    ssd = ssdlite320_mobilenet_v3_large(**UNTRAINED, num_classes=2)
    parts = cut(ssd, "detection", InputSpec(size=(256, 320), color="bgr"))
    assert parts.input == InputSpec(size=(256, 320), mean=(0.5,) * 3, std=(0.5,) * 3, color="bgr")
    one = cut(nn.Sequential(nn.Conv2d(1, 4, 3)), "embedding", InputSpec(size=(16, 16), color="gray"))
    assert one.stages["main"].inputs["image"].shape == (2, 1, 16, 16)
    with torch.device("meta"):
        retinanet = retinanet_resnet50_fpn(**UNTRAINED)
        lraspp = lraspp_mobilenet_v3_large(**UNTRAINED)
    # The size that torchvision gives a landscape frame.
    expected = InputSpec(size=(800, 1344), mean=IMAGENET[0], std=IMAGENET[1], fit="letterbox")
    assert input_defaults(retinanet) == expected
    assert input_defaults(lraspp) == expected.model_copy(update={"size": (520, 928)})


def test_inception_is_normalised_outside_the_graph() -> None:
    model = inception_v3(num_classes=4, init_weights=False, transform_input=True)
    parts = cut(model, "classification", InputSpec(size=(96, 96)))
    assert input_defaults(model).size == (299, 299) and model.transform_input
    assert parts.input.mean == pytest.approx((0.5,) * 3) and parts.input.std == pytest.approx((0.5,) * 3)
    pixels = torch.rand(1, 3, 96, 96)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    with torch.no_grad():
        expected = model((pixels - mean) / std)
        torch.testing.assert_close(parts.stages["main"].module((pixels - 0.5) / 0.5), expected, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norm_is_thawed() -> None:
    frozen = FrozenBatchNorm2d(4, eps=1e-3)
    for value in frozen.buffers():
        value.uniform_(0.5, 2)
    inner = nn.Sequential(frozen)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), frozen, inner).eval()
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected, names = model(image), list(model.state_dict())
        assert thaw_batch_norm(model) is model
        torch.testing.assert_close(model(image), expected)
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d) and layer.eps == 1e-3 and layer is inner[0]
    assert sorted(model.state_dict()) == sorted(names) and not layer.weight.requires_grad
    assert layer.weight.data_ptr() == frozen.weight.data_ptr()

    detector = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=2)
    parts = cut(detector, "detection", InputSpec(size=(64, 64)))
    assert not any(isinstance(layer, FrozenBatchNorm2d) for layer in parts.stages["main"].module.modules())


class _OtherFrozenBatchNorm(nn.Module):
    """Frozen BatchNorm as detectors of Hugging Face have it: a class of its own, without an attribute for epsilon."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    centred = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, image: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale if self.centred else self.bias
        return image * scale[:, None, None] + shift[:, None, None]


class UncentredFrozenBatchNorm2d(_OtherFrozenBatchNorm):
    centred = False


class DetrFrozenBatchNorm2d(_OtherFrozenBatchNorm):
    pass


def test_frozen_batch_norm_of_another_library_is_thawed_if_it_is_one() -> None:
    model = nn.Sequential(DetrFrozenBatchNorm2d(4), UncentredFrozenBatchNorm2d(4)).eval()
    image = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(thaw_batch_norm(model)(image), expected)
    assert [type(layer) for layer in model] == [nn.BatchNorm2d, UncentredFrozenBatchNorm2d]


def test_faster_rcnn_refuses_sizes_and_poolings_it_does_not_know() -> None:
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
    model = FasterRCNN(backbone, num_classes=3, rpn_anchor_generator=None)
    with pytest.raises(ModelError, match=r"\[100, 128\].*multiples of 32"):
        cut(model, "detection", InputSpec(size=(100, 128)))
    model.roi_heads.box_roi_pool = nn.Identity()
    with pytest.raises(ModelError, match="box_roi_pool is Identity"):
        cut(model, "detection", InputSpec(size=(96, 128)))


def exported(stage: StageModule, path: Path, variants: list[tuple[Tensor, ...]]) -> None:
    """Export a stage and compare its outputs with eager mode, also on inputs of other sizes (``variants``)."""
    free = tuple(dict.fromkeys(stage.free.get(name, {}), Dim.DYNAMIC) for name in stage.inputs)
    with torch.no_grad():
        program = torch.onnx.export(
            stage.module.eval(),
            tuple(stage.inputs.values()),
            dynamo=True,
            optimize=False,
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert {name for name in program.model.graph.initializers if name.startswith("model.")} <= {
        f"model.{name}"
        for name in stage.module.model.state_dict()  # type: ignore[union-attr]
    }
    for inputs in [tuple(stage.inputs.values()), *variants]:
        with torch.no_grad():
            expected = as_tuple(stage.module(*inputs))
        got = session.run(list(stage.outputs), {k: v.numpy() for k, v in zip(stage.inputs, inputs, strict=True)})
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * max(float(theirs.abs().max()), 1e-6)


def test_faster_rcnn_stages_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(**UNTRAINED, num_classes=3)
    parts = cut(model, "detection", InputSpec(size=(64, 96)))
    decode = parts.decode
    assert isinstance(decode, FasterRcnnDecode) and decode.classes == 2 and decode.roi_levels == (0, 1)
    assert list(parts.stages) == ["main", "roi", "head"]
    assert parts.stages["main"].outputs[:3] == ("features_0", "features_1", "objectness_0")
    assert [parts.tensors[name].shape for name in decode.anchors] == [(90, 4), (90, 4), (30, 4)]
    # Another feature size and another number of regions than in the example inputs.
    features, rois = torch.rand(1, 256, 7, 5), torch.tensor([[0.0, 0.0, 3.0, 2.0]])
    exported(parts.stages["roi"], tmp_path / "roi.onnx", [(features, rois)])
    exported(parts.stages["head"], tmp_path / "head.onnx", [(torch.rand(9, 256, 7, 7),)])


def test_ssdlite_exports_with_a_free_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(**UNTRAINED, num_classes=2)
    stage = cut(model, "detection", InputSpec(size=(160, 160))).stages["main"]
    assert stage.outputs == ("logits", "boxes") and stage.inputs["image"].shape == (2, 3, 160, 160)
    exported(stage, tmp_path / "main.onnx", [(torch.randn(1, 3, 160, 160),)])
