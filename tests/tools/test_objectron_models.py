"""Tests of reading TensorFlow Lite files, and of the models that are made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from gemel.errors import ModelError
from gemel.workload.zoo.ssdlite import ssd_mobilenet_v2

pytest.importorskip("tflite")

from objectron_models import convert_landmarks, ssd_state
from tflite_bytes import TfliteWriter
from tflite_file import Operator, TfliteGraph, read_tflite

_SAME, _RELU6, _TANH = 0, 3, 4


def _halves(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Return numbers that half precision holds exactly."""
    return rng.integers(-8, 9, shape).astype(np.float32) / 8


def _landmarks(activation: int = _RELU6, axes: tuple[int, ...] = (1, 2)) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Return a file with each operator of the landmark models, and its constants."""
    rng = np.random.default_rng(0)
    values = {
        "kernel": _halves(rng, 4, 3, 3, 3), "bias": _halves(rng, 4), "deep": _halves(rng, 1, 3, 3, 4),
        "deep bias": _halves(rng, 4), "points": _halves(rng, 6, 4), "points bias": _halves(rng, 6),
        "flag": _halves(rng, 1, 4), "flag bias": _halves(rng, 1),
    }  # fmt: skip
    writer = TfliteWriter((1, 8, 8, 3))
    at = {name: writer.constant(value) for name, value in values.items()}
    window = {"StrideW": 1, "StrideH": 1, "DilationWFactor": 1, "DilationHFactor": 1, "Padding": _SAME}
    conv = writer.operator(
        "CONV_2D",
        [0, at["kernel"], at["bias"]],
        (1, 4, 4, 4),
        table="Conv2DOptions",
        FusedActivationFunction=activation,
        **(window | {"StrideW": 2, "StrideH": 2}),
    )
    deep = writer.operator(
        "DEPTHWISE_CONV_2D",
        [conv, at["deep"], at["deep bias"]],
        (1, 4, 4, 4),
        table="DepthwiseConv2DOptions",
        DepthMultiplier=1,
        **window,
    )
    both = writer.operator("ADD", [conv, deep], (1, 4, 4, 4), table="AddOptions")
    over = writer.constant(axes, np.int32)
    mean = writer.operator("MEAN", [both, over], (1, 4), table="ReducerOptions", KeepDims=False)
    points = writer.operator(
        "FULLY_CONNECTED", [mean, at["points"], at["points bias"]], (1, 6), table="FullyConnectedOptions"
    )
    flag = writer.operator(
        "FULLY_CONNECTED", [mean, at["flag"], at["flag bias"]], (1, 1), table="FullyConnectedOptions"
    )
    return writer.write([writer.operator("LOGISTIC", [flag], (1, 1)), points]), values


def test_landmark_models_become_onnx_with_the_same_outputs() -> None:
    data, values = _landmarks()
    made = convert_landmarks(read_tflite(data, "a.tflite"), "a")
    image = np.random.default_rng(1).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    found = dict(zip([each.name for each in session.get_outputs()], session.run(None, {"image": image}), strict=True))
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    # TensorFlow pads an even side by one pixel after the image, for a stride of 2.
    x = F.pad(torch.from_numpy(image), (0, 1, 0, 1))
    x = F.conv2d(x, tensors["kernel"].permute(0, 3, 1, 2), tensors["bias"], 2).clamp(0, 6)
    x = x + F.conv2d(x, tensors["deep"].permute(3, 0, 1, 2), tensors["deep bias"], padding=1, groups=4)
    x = x.mean((2, 3))
    points = F.linear(x, tensors["points"], tensors["points bias"]).numpy()
    flag = F.linear(x, tensors["flag"], tensors["flag bias"]).sigmoid().numpy()
    np.testing.assert_allclose(found["landmarks"], points, atol=1e-5)
    np.testing.assert_allclose(found["presence"], flag, atol=1e-5)


def test_refuses_other_files_and_settings() -> None:
    with pytest.raises(ModelError, match=r"a\.tflite: not a TensorFlow Lite file"):
        read_tflite(b"\0" * 32, "a.tflite")
    with pytest.raises(ModelError, match="CONV_2D has the unknown activation 4"):
        convert_landmarks(read_tflite(_landmarks(_TANH)[0], "a.tflite"), "a")
    with pytest.raises(ModelError, match="a mean over other axes"):
        convert_landmarks(read_tflite(_landmarks(axes=(1, 3))[0], "a.tflite"), "a")
    writer = TfliteWriter((1, 2, 2, 1))
    strange = writer.write([writer.operator("TANH", [0], (1, 2, 2, 1))])
    with pytest.raises(ModelError, match="the operator TANH is not known"):
        convert_landmarks(read_tflite(strange, "a.tflite"), "a")
    writer = TfliteWriter((1, 4, 4, 1))
    kernel, bias = writer.constant(np.ones((1, 1, 1, 1))), writer.constant([0])
    options = {"table": "Conv2DOptions", "StrideW": 1, "StrideH": 2}
    uneven = writer.write([writer.operator("CONV_2D", [0, kernel, bias], (1, 2, 4, 1), **options)])
    with pytest.raises(ModelError, match="different strides along the two axes"):
        read_tflite(uneven, "a.tflite")


def _as_graph(model: nn.Module) -> TfliteGraph:
    """Return a graph with a detector's layers in the order and layout of TensorFlow Lite."""
    operators = []
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    # The converter writes the heads of each level where the level is computed.
    order = sorted(named, key=lambda each: "heads" in each[0])
    order = order[:40] + order[60:62] + order[40:60] + order[62:]
    for name, layer in order:
        kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        if name.startswith("box_heads"):
            rows = [4 * anchor + place for anchor in range(len(kernel) // 4) for place in (1, 0, 3, 2)]
            kernel, bias = kernel[rows], bias[rows]
        deep = layer.groups > 1
        kernel = kernel.transpose((1, 2, 3, 0) if deep else (0, 2, 3, 1))
        kind = "DEPTHWISE_CONV_2D" if deep else "CONV_2D"
        operators.append(Operator(kind, ("x", kernel, bias), name, {}))
        if "heads" in name:
            operators.append(Operator("RESHAPE", (name, np.zeros(3, np.int32)), f"{name}:rows", {}))
    return TfliteGraph(("x",), (), {}, tuple(operators))


def test_the_detector_takes_its_layers_in_order() -> None:
    model = ssd_mobilenet_v2(2, batch_norm=False)
    graph = _as_graph(model)
    found = ssd_state(graph, ssd_mobilenet_v2(2, batch_norm=False), "a.tflite")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(ModelError, match=r"needs \(\d+, \d+, 1, 1\)"):
        ssd_state(graph, ssd_mobilenet_v2(3, batch_norm=False), "a.tflite")
    short = TfliteGraph(graph.inputs, (), {}, graph.operators[1:])
    with pytest.raises(ModelError, match="71 convolutions; expected 72"):
        ssd_state(short, ssd_mobilenet_v2(2, batch_norm=False), "a.tflite")
    computed = TfliteGraph(graph.inputs, (), {}, (Operator("CONV_2D", ("x", "y"), "z", {}), *graph.operators[1:]))
    with pytest.raises(ModelError, match=r"input 1 of CONV_2D \(z\) is no constant"):
        ssd_state(computed, ssd_mobilenet_v2(2, batch_norm=False), "a.tflite")
