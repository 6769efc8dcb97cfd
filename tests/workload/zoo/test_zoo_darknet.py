"""Tests of YOLOv3 and Tiny-YOLOv3: layers, weights files and decoding are Darknet's."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gemel.bundles.decode_specs import YoloDecode
from gemel.compiler.heads import cut
from gemel.errors import ModelError
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode import DecodeContext, build_decoder
from gemel.workload.zoo.darknet import Darknet, load_darknet, yolov3, yolov3_tiny


# Parameters are those that an optimizer sees, as the PyTorch ports count them: 61.95 M and 8.85 M. A weights file also
# holds BatchNorm's means and variances: yolov3.weights has 248,007,048 bytes and yolov3-tiny.weights 35,434,956, with a
# header of 20 bytes each. The published 8.86 M of Tiny-YOLOv3 include means and variances.
@pytest.mark.parametrize(
    ("factory", "layers", "parameters", "file"),
    [(yolov3, 107, 61_949_149, 248_007_048), (yolov3_tiny, 24, 8_852_366, 35_434_956)],
)
def test_size_is_the_published_one(factory: type, layers: int, parameters: int, file: int) -> None:
    with torch.device("meta"):
        model = factory()
    assert len(model.layers) == layers
    assert sum(value.numel() for value in model.parameters()) == parameters
    buffers = sum(value.numel() for name, value in model.named_buffers() if not name.endswith("tracked"))
    assert 20 + 4 * (parameters + buffers) == file


def test_layers_have_darknets_numbers() -> None:
    with torch.device("meta"):
        state, tiny = yolov3(3).state_dict(), yolov3_tiny(3).state_dict()
    # (filters, channels) of the heads, of the first convolution after each route, and of the last of backbone stages.
    wanted = {0: (32, 3), 37: (512, 256), 73: (1024, 512), 81: (24, 1024), 84: (256, 512), 87: (256, 768)}
    wanted |= {93: (24, 512), 96: (128, 256), 99: (128, 384), 105: (24, 256)}
    assert {index: tuple(state[f"layers.{index}.conv.weight"].shape[:2]) for index in wanted} == wanted
    assert "layers.0.bn.running_var" in state and "layers.81.conv.bias" in state and "layers.81.bn.weight" not in state
    wanted = {12: (1024, 512), 15: (24, 512), 18: (128, 256), 21: (256, 384), 22: (24, 256)}
    assert {index: tuple(tiny[f"layers.{index}.conv.weight"].shape[:2]) for index in wanted} == wanted


def test_pooling_at_stride_one_pads_with_what_never_wins() -> None:
    pool = yolov3_tiny(1).layers[11]
    x = torch.randn(1, 3, 5, 7) - 10
    expected = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)
    assert torch.equal(pool(x), expected)


def test_forward_is_the_graph_of_the_cfg() -> None:
    torch.manual_seed(0)
    model = yolov3_tiny(2).eval()
    x = image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        kept = []
        for layer in model.layers[:16]:
            x = layer(x)
            kept.append(x)
        up = functional.interpolate(model.layers[18](kept[13]), scale_factor=2)
        fine = model.layers[22](model.layers[21](torch.cat([up, kept[8]], 1)))
        heads = model(image)
    assert [tuple(head.shape) for head in heads] == [(2, 21, 2, 3), (2, 21, 4, 6)]
    assert torch.equal(heads[0], kept[15]) and torch.equal(heads[1], fine)


def write(path: Path, model: Darknet, version: tuple[int, int, int] = (0, 2, 0)) -> None:
    """Write a model's weights as Darknet's save_weights does."""
    content = struct.pack("<3i", *version) + struct.pack("<q" if version[1] >= 2 else "<i", 32013312)
    state = model.state_dict()
    for index, layer in enumerate(model.layers):
        if not hasattr(layer, "conv"):
            continue
        names = ["bn.bias", "bn.weight", "bn.running_mean", "bn.running_var"] if layer.bn is not None else ["conv.bias"]
        for name in [*names, "conv.weight"]:
            content += state[f"layers.{index}.{name}"].numpy().astype("<f4").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("version", [(0, 2, 0), (0, 1, 0)])
def test_loads_darknets_file(tmp_path: Path, version: tuple[int, int, int]) -> None:
    source, target = yolov3_tiny(1), yolov3_tiny(1)
    for name, value in source.state_dict().items():
        if not name.endswith("tracked"):
            value.copy_(torch.rand_like(value))
    write(tmp_path / "tiny.weights", source, version)
    load_darknet(target, tmp_path / "tiny.weights")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_refuses_a_file_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "tiny.weights"
    write(path, yolov3_tiny(1))
    length = path.stat().st_size
    with pytest.raises(ModelError, match=rf"tiny\.weights: {length} bytes, but YoloV3Tiny with 2 classes needs \d+"):
        load_darknet(yolov3_tiny(2), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=rf"{length - 4} bytes.* needs {length}"):
        load_darknet(yolov3_tiny(1), path)
    path.write_bytes(b"short")
    with pytest.raises(ModelError, match="5 bytes"):
        load_darknet(yolov3_tiny(1), path)
    with pytest.raises(ModelError, match="not Linear"):
        load_darknet(nn.Linear(1, 1), path)
    with pytest.raises(ModelError, match="cannot be read"):
        load_darknet(yolov3_tiny(1), tmp_path / "missing.weights")


def test_cut_and_decode() -> None:
    torch.manual_seed(0)
    model = yolov3_tiny(2)
    with pytest.raises(ModelError, match=r"input.size \[100, 416\].*multiples of 32"):
        model.decode((100, 416))
    parts = cut(model, "detection", model.input_defaults().model_copy(update={"size": (64, 96)}))
    assert isinstance(parts.decode, YoloDecode)
    assert [(head.output, head.stride) for head in parts.decode.heads] == [("stride32", 32), ("stride16", 16)]
    image, geometry = preprocess(np.random.default_rng(0).integers(0, 256, (60, 96, 3)).astype(np.uint8), parts.input)
    assert (image[0, :, 60:] == 0.5).all()
    stage = parts.stages["main"]
    with torch.no_grad():
        outputs = [value.numpy() for value in stage.module(torch.from_numpy(image))]
    decoder = build_decoder(parts.decode, DecodeContext(lambda name: np.zeros(0, np.float32), None, 0.1))
    result = decoder(dict(zip(stage.outputs, outputs, strict=True)), geometry, lambda name, inputs: {})
    # With random weights every score is about sigmoid(0) * sigmoid(0) = 0.25, above the threshold of 0.1.
    assert isinstance(result, tuple) and len(result) > 10
