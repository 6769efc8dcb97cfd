"""Tests of the zoo's SSDLite, and of the conversion of its weights from a frozen TensorFlow graph."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from make_street_example import read_constants, ssdlite_state
from numpy.typing import NDArray
from torch import nn
from torchvision.models import mobilenet_v2

from gemel.bundles.decode_specs import SsdDecode
from gemel.errors import ModelError
from gemel.workload.zoo.mobilenet import mobilenet_v2_features
from gemel.workload.zoo.ssdlite import SsdMobileNetV2, same_padding, ssd_mobilenet_v2, ssdlite_mobilenet_v2

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@pytest.fixture(scope="module")
def model() -> SsdMobileNetV2:
    torch.manual_seed(0)
    return ssdlite_mobilenet_v2(num_classes=2).eval()


@pytest.mark.parametrize("size", [(300, 300), (160, 224)])
def test_heads_have_a_row_for_each_anchor(model: SsdMobileNetV2, size: tuple[int, int]) -> None:
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, *size))
    spec, tensors = model.decode(size)
    assert isinstance(spec, SsdDecode)
    count = len(tensors[spec.anchors])
    assert [tuple(output.shape) for output in outputs] == [(2, count, spec.classes + spec.background), (2, count, 4)]
    assert len(outputs) == len(model.output_names)


def test_anchors_are_those_of_the_object_detection_api(model: SsdMobileNetV2) -> None:
    anchors = model.decode((300, 300))[1]["anchors"]
    assert anchors.shape == (1917, 4)
    assert anchors.dtype == np.float32
    # Anchors of the first cell of the 19 x 19 level, read from a frozen graph: y1 x1 y2 x2, as parts of the input.
    graph = np.array(
        [[-0.02368421, -0.02368421, 0.07631579, 0.07631579], [-0.04439489, -0.11510557, 0.09702647, 0.16773716]]
    )
    np.testing.assert_allclose(anchors[:2], graph[:, [1, 0, 3, 2]] * 300, atol=1e-4)
    # The last anchor is a square with a side of sqrt(0.95 * 1) of the input, at its centre.
    half = 300 * 0.95**0.5 / 2
    np.testing.assert_allclose(anchors[-1], [150 - half, 150 - half, 150 + half, 150 + half], atol=1e-4)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_centres_the_windows_and_leans_to_the_end(size: int, stride: int) -> None:
    before, after = same_padding(size, 3, stride)
    windows = (size + before + after - 3) // stride + 1
    assert windows == -(-size // stride)
    # There are only as many pixels of padding as the windows need.
    assert before + after == max(0, (windows - 1) * stride + 3 - size)
    assert after - before in (0, 1)


def test_a_strided_convolution_looks_at_the_pixels_tensorflow_looks_at(model: SsdMobileNetV2) -> None:
    stem = model.features[0]
    assert isinstance(stem, nn.Sequential)
    image = torch.rand(1, 3, 8, 7)
    # 8 rows are padded by one row after them, 7 columns by one column on either side.
    padded = np.zeros((3, 9, 9), np.float32)
    padded[:, :8, 1:8] = image[0].numpy()
    kernel = stem.state_dict()["0.weight"].numpy()
    expected = np.empty((32, 4, 4), np.float32)
    for y in range(4):
        for x in range(4):
            expected[:, y, x] = np.tensordot(kernel, padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3], 3)
    with torch.no_grad():
        # BatchNorm is initialised with mean 0 and variance 1, so it only divides by sqrt(1 + eps).
        found = stem(image)[0].numpy()
    np.testing.assert_allclose(found, np.clip(expected / np.sqrt(1.001), 0, 6), atol=1e-5)


def test_the_backbone_has_the_parameters_of_torchvision(model: SsdMobileNetV2) -> None:
    theirs = {name: tensor.shape for name, tensor in mobilenet_v2(weights=None).features.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.features.state_dict().items()} == theirs
    features = mobilenet_v2_features()
    assert {name: tensor.shape for name, tensor in features.features.state_dict().items()} == theirs
    with torch.no_grad():
        assert features.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_plain_ssd_has_the_outputs_and_anchors_of_ssdlite(model: SsdMobileNetV2, batch_norm: bool) -> None:
    plain = ssd_mobilenet_v2(num_classes=2, batch_norm=batch_norm).eval()
    with torch.no_grad():
        shapes = [[output.shape for output in each(torch.zeros(1, 3, 96, 96))] for each in (plain, model)]
    assert shapes[0] == shapes[1]
    np.testing.assert_array_equal(plain.decode((96, 96))[1]["anchors"], model.decode((96, 96))[1]["anchors"])
    layers = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
    # 52 in the backbone, two for each of four extra levels, two heads on each of six levels.
    assert len(layers) == 72
    assert not [
        head for head in plain.class_heads for layer in head if isinstance(layer, nn.Conv2d) and layer.groups > 1
    ]
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert (norms, sum(layer.bias is not None for layer in layers)) == ((60, 12) if batch_norm else (0, 72))


def test_exports_with_a_free_batch_and_no_shape_arithmetic(model: SsdMobileNetV2) -> None:
    batch = {"image": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(model, (torch.zeros(2, 3, 96, 96),), dynamic_shapes=batch, strict=False)
    image = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        for found, expected in zip(exported.module()(image), model(image), strict=True):
            torch.testing.assert_close(found, expected)
    # Arithmetic on the batch size would become nodes of every exported program.
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    assert not [node for node in calls if "sym_size" in str(node.target)]


def _field(number: int, value: bytes | int) -> bytes:
    """Return an encoded protobuf field with a number, or with fewer than 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def _node(name: str, op: str, tensor: bytes) -> bytes:
    """Return an encoded node of a TensorFlow graph with a tensor as its attribute ``value``."""
    entry = _field(1, b"value") + _field(2, _field(8, tensor))
    # The reader does not know field 4, the device.
    return _field(1, _field(1, name.encode()) + _field(2, op.encode()) + _field(4, b"/cpu:0") + _field(5, entry))


def _shape(*sizes: int) -> bytes:
    """Return an encoded tensor shape."""
    return _field(2, b"".join(_field(2, _field(1, size)) for size in sizes))


def test_reads_the_constants_of_a_graph() -> None:
    graph = (
        _node("kernel", "Const", _field(1, 1) + _shape(2, 1) + _field(4, struct.pack("<2f", 1.5, -2)))
        + _node("repeated", "Const", _field(1, 1) + _shape(3) + _field(5, struct.pack("<f", 0.25)))
        + _node("listed", "Const", _field(1, 1) + _shape(2) + _field(5, struct.pack("<2f", 3, 4)))
        + _node("scalar", "Const", _field(1, 1) + _field(2, b"") + _field(5, struct.pack("<f", 7)))
        + _node("integers", "Const", _field(1, 3) + _shape(1) + _field(4, struct.pack("<i", 5)))
        + _node("other", "Identity", _field(1, 1) + _shape(1))
    )
    constants = read_constants(graph, "a.pb")
    assert {name: values.tolist() for name, values in constants.items()} == {
        "kernel": [[1.5], [-2.0]],
        "repeated": [0.25, 0.25, 0.25],
        "listed": [3.0, 4.0],
        "scalar": 7.0,
    }


def test_refuses_what_is_no_graph() -> None:
    with pytest.raises(ModelError, match=r"a\.pb: not a frozen TensorFlow graph"):
        read_constants(b"\x0a\xff", "a.pb")
    short = _node("kernel", "Const", _field(1, 1) + _shape(3) + _field(4, struct.pack("<2f", 1, 2)))
    with pytest.raises(ModelError, match=r"kernel has 2 values; its shape is \[3\]"):
        read_constants(short, "a.pb")


def _as_tensorflow(model: SsdMobileNetV2) -> dict[str, NDArray[np.float32]]:
    """Return the constants that a graph of the object-detection API has for a model, by the graph's names."""
    constants: dict[str, NDArray[np.float32]] = {}

    def put(scope: str, conv: str, norm: str | None) -> None:
        """Add the constants of a convolution, and of its BatchNorm, under a scope of the graph."""
        layer = model.get_submodule(conv)
        assert isinstance(layer, nn.Conv2d)
        kernel = layer.weight.detach().numpy()
        bias = layer.bias.detach().numpy() if layer.bias is not None else None
        if conv.startswith("box_heads") and norm is None:
            # Channels are ordered by anchor and coordinate; TensorFlow's coordinates are y x h w.
            order = [4 * anchor + coordinate for anchor in range(len(kernel) // 4) for coordinate in (1, 0, 3, 2)]
            kernel, bias = kernel[order], bias[order] if bias is not None else None
        if layer.groups > 1:
            constants[f"{scope}/depthwise_weights"] = np.moveaxis(kernel[:, 0], 0, 2)[..., None]
        else:
            constants[f"{scope}/weights"] = np.moveaxis(kernel, (0, 1), (3, 2))
        if bias is not None:
            constants[f"{scope}/biases"] = bias
        for ours, theirs in _NORM.items() if norm else ():
            constants[f"{scope}/BatchNorm/{theirs}"] = model.state_dict()[f"{norm}.{ours}"].numpy()

    root = "FeatureExtractor/MobilenetV2/"
    put(f"{root}Conv", "features.0.0", "features.0.1")
    put(f"{root}expanded_conv/depthwise", "features.1.conv.0.0", "features.1.conv.0.1")
    put(f"{root}expanded_conv/project", "features.1.conv.1", "features.1.conv.2")
    for block in range(2, 18):
        scope, layers = f"{root}expanded_conv_{block - 1}", f"features.{block}.conv"
        put(f"{scope}/expand", f"{layers}.0.0", f"{layers}.0.1")
        put(f"{scope}/depthwise", f"{layers}.1.0", f"{layers}.1.1")
        put(f"{scope}/project", f"{layers}.2", f"{layers}.3")
    put(f"{root}Conv_1", "features.18.0", "features.18.1")
    for extra, name in enumerate(["2_{}_512", "3_{}_256", "4_{}_256", "5_{}_128"]):
        half = ["1x1_256", "1x1_128", "1x1_128", "1x1_64"][extra]
        put(f"{root}layer_19_1_Conv2d_{name[0]}_{half}", f"extras.{extra}.0.0", f"extras.{extra}.0.1")
        scope = f"{root}layer_19_2_Conv2d_{name.format('3x3_s2')}"
        put(f"{scope}_depthwise", f"extras.{extra}.1.0", f"extras.{extra}.1.1")
        put(scope, f"extras.{extra}.2.0", f"extras.{extra}.2.1")
    for level in range(6):
        for ours, theirs in (("box_heads", "BoxEncodingPredictor"), ("class_heads", "ClassPredictor")):
            put(f"BoxPredictor_{level}/{theirs}_depthwise", f"{ours}.{level}.0.0", f"{ours}.{level}.0.1")
            put(f"BoxPredictor_{level}/{theirs}", f"{ours}.{level}.1", None)
    return constants


def test_converts_layouts_and_box_order() -> None:
    model = ssdlite_mobilenet_v2(num_classes=1)
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + number * 1e-3)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    constants = _as_tensorflow(model)
    found = ssdlite_state(constants, ssdlite_mobilenet_v2(num_classes=1), "a.pb")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)

    constants["BoxPredictor_5/ClassPredictor/biases"] = np.zeros(3, np.float32)
    with pytest.raises(
        ModelError, match=r"a\.pb: BoxPredictor_5/ClassPredictor/biases has shape \(3,\); expected \(12,\)"
    ):
        ssdlite_state(constants, ssdlite_mobilenet_v2(num_classes=1), "a.pb")
    del constants["BoxPredictor_5/ClassPredictor/biases"]
    with pytest.raises(ModelError, match=r"no constant 'BoxPredictor_5/ClassPredictor/biases'"):
        ssdlite_state(constants, ssdlite_mobilenet_v2(num_classes=1), "a.pb")
