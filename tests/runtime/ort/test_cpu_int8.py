"""INT8 graphs compute the same in the form that ONNX Runtime runs in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int8 import Array, Drawing, arrays, close, images, network, run_as_written, wired

from gemel.bundles.onnx_wire import tensor_array
from gemel.bundles.program import read_model
from gemel.runtime.ort.cpu_int8 import for_ort_int8
from gemel.runtime.ort.optimise import optimise_int8

Layer = Callable[[Drawing, str], str]


def test_uint8_activations_mean_what_int8_ones_mean() -> None:
    model = network(0)
    found = for_ort_int8(wired(model), tensor_array)
    # A bias is rounded by up to half a unit, which moves values on the edge of two integers to the other one.
    close(run_as_written(found, images(4)), run_as_written(model, images(4)), 1e-2)
    zeros = [values for name, values in arrays(found).items() if values.dtype == np.uint8]
    assert sorted(map(int, zeros)) == [0, 128]


def test_biases_are_whole_numbers_of_both_scales() -> None:
    draw = Drawing()
    value = draw.rounded("image", 2.0)
    kernel = draw.kernel(np.ones((4, 3, 1, 1), np.int8), np.array([0.1, 0.2, 0.3, 0.4]), 0)
    bias = draw.constant(np.array([1, -1, 1e30, 0], np.float32))
    model = wired(draw.model(draw.rounded(draw.node("Conv", value, kernel, bias), 4.0)))
    constants = arrays(for_ort_int8(model, tensor_array))
    (whole,) = (values for values in constants.values() if values.dtype == np.int32)
    unit = np.float32(2 / 127)
    assert whole.tolist() == [round(1 / (unit * 0.1)), round(-1 / (unit * 0.2)), 2**31 - 1, 0]


def test_a_layer_that_is_left_in_float32_stays_as_it_is(tmp_path: Path) -> None:
    """ONNX Runtime would round the kernel with one scale, with which the small channel becomes 0."""
    draw = Drawing()
    kernel = np.ones((2, 3, 1, 1), np.float32) * np.array([1000, 0.01], np.float32).reshape(2, 1, 1, 1)
    value = draw.node("Conv", draw.rounded("image", 2.0), draw.constant(kernel), draw.bias(2))
    model = draw.model(draw.rounded(value, 4.0))
    optimised = optimise_int8(
        tmp_path / "model.onnx", for_ort_int8(wired(model), tensor_array).SerializeToString(), tmp_path
    )
    kept = [tensor_array(tensor) for tensor in read_model(optimised).graph.initializer if len(tensor.dims) == 4]
    assert [values.dtype for values in kept] == [np.float32]


def test_layers_become_integer_ones(tmp_path: Path) -> None:
    draw = Drawing()
    kernel = draw.kernel(np.ones((2, 3, 16, 16), np.int8), np.array([0.1, 0.2]), 0)
    value = draw.rounded(draw.node("Relu", draw.node("Conv", draw.rounded("image", 2.0), kernel, draw.bias(2))), 4.0)
    kernel = draw.kernel(np.ones((5, 2), np.int8), np.full(5, 0.1), 0)
    model = draw.model(
        draw.node("Gemm", draw.rounded(draw.node("Flatten", value), 4.0), kernel, draw.bias(5), transB=1)
    )
    optimised = optimise_int8(
        tmp_path / "model.onnx", for_ort_int8(wired(model), tensor_array).SerializeToString(), tmp_path
    )
    kinds = Counter(node.op_type for node in read_model(optimised).graph.node)
    assert kinds["QLinearConv"] == kinds["QGemm"] == 1
    assert not kinds["Conv"] and not kinds["Gemm"] and not kinds["Relu"]


@pytest.mark.parametrize(("most", "peak"), [(6, 6), (6, 4), (1, 1), (3.3, 3.3)])
def test_a_layer_before_a_clip_becomes_an_integer_one(most: float, peak: float, tmp_path: Path) -> None:
    draw = Drawing()
    kernel = draw.kernel(np.ones((2, 3, 3, 3), np.int8), np.array([0.1, 0.2]), 0)
    ends = draw.constant(np.float32(0)), draw.constant(np.float32(most))
    value = draw.node("Clip", draw.node("Conv", draw.rounded("image", 2.0), kernel, draw.bias(2)), *ends)
    model = draw.model(draw.rounded(value, peak))
    found = for_ort_int8(wired(model), tensor_array)
    optimised = optimise_int8(tmp_path / "model.onnx", found.SerializeToString(), tmp_path)
    kinds = Counter(node.op_type for node in read_model(optimised).graph.node)
    assert kinds["QLinearConv"] == 1 and not {"Clip", "Conv", "FusedConv"} & kinds.keys()
    # Rounding is finer than in the bundle's graph, which cuts values off above its peak.
    finer, coarse = (run_as_written(each, images(4)) for each in (found, model))
    assert np.abs(finer.clip(0, peak) - coarse).max() <= peak / 127


@pytest.mark.parametrize(("least", "most", "peak"), [(0, 6, 2.9), (0, 0, 1), (0, np.inf, 6), (-1, 6, 6)])
def test_a_scale_that_a_clip_does_not_limit_stays(least: float, most: float, peak: float) -> None:
    draw = Drawing()
    value = draw.node("Clip", "image", draw.constant(np.float32(least)), draw.constant(np.float32(most)))
    found = for_ort_int8(wired(draw.model(draw.rounded(value, peak))), tensor_array)
    constants = arrays(found)
    scales = {float(constants[node.input[1]]) for node in found.graph.node if "Linear" in node.op_type}
    assert scales == {float(np.float32(peak / 127))}


def is_taken_for_positive(last: Layer) -> bool:
    """Return whether the conversion takes a value for one that cannot be negative."""
    draw = Drawing()
    found = for_ort_int8(wired(draw.model(draw.rounded(last(draw, "image"), 1))), tensor_array)
    constants = arrays(found)
    (node,) = (node for node in found.graph.node if node.op_type == "QuantizeLinear")
    return int(constants[node.input[2]]) == 0


def behind_relu(kind: str, *operands: Array, count: int = 1, **attributes: Any) -> Layer:
    def draw_it(draw: Drawing, value: str) -> str:
        value = draw.node("Relu", value)
        return draw.node(kind, *[value] * count, *(draw.constant(operand) for operand in operands), **attributes)

    return draw_it


def of_image(kind: str, *operands: Array, count: int = 1, **attributes: Any) -> Layer:
    def draw_it(draw: Drawing, value: str) -> str:
        return draw.node(kind, *[value] * count, *(draw.constant(operand) for operand in operands), **attributes)

    return draw_it


def mixed(draw: Drawing, value: str) -> str:
    return draw.node("Concat", value, draw.node("Relu", value), axis=1)


def clip_without_minimum(draw: Drawing, value: str) -> str:
    return draw.node("Clip", value, "", draw.constant(np.float32(6)))


WHOLE = np.array([0, 0, 1, 1, 0, 0, 1, 1])
ENDS = [np.array([value]) for value in (0, 8, 2)]
POOL: dict[str, Any] = {"kernel_shape": [2, 2]}


@pytest.mark.parametrize(
    "last",
    [
        *(of_image(kind) for kind in ("Relu", "Sigmoid", "HardSigmoid", "Softmax")),
        of_image("Clip", np.float32(0), np.float32(6)),
        *(behind_relu(kind, **POOL) for kind in ("MaxPool", "AveragePool")),
        *(behind_relu(kind) for kind in ("GlobalAveragePool", "Flatten", "Transpose")),
        behind_relu("Reshape", np.array([0, -1])),
        behind_relu("Slice", *ENDS),
        behind_relu("Pad", WHOLE),
        behind_relu("Pad", WHOLE, np.float32(0)),
        behind_relu("Pad", WHOLE, mode="reflect"),
        behind_relu("Concat", count=2, axis=1),
        behind_relu("Add", count=2),
    ],
)
def test_what_cannot_be_negative(last: Layer) -> None:
    assert is_taken_for_positive(last)


@pytest.mark.parametrize(
    "last",
    [
        of_image("Identity"),
        of_image("LeakyRelu"),
        of_image("Clip", np.float32(-1), np.float32(6)),
        of_image("MaxPool", **POOL),
        of_image("Concat", count=2, axis=1),
        behind_relu("Pad", WHOLE, np.float32(-1)),
        behind_relu("Neg"),
        mixed,
        clip_without_minimum,
    ],
)
def test_what_may_be_negative(last: Layer) -> None:
    assert not is_taken_for_positive(last)


def test_rounding_in_a_chain_keeps_zero_points() -> None:
    draw = Drawing()
    value = draw.rounded(draw.node("Relu", "image"), 1)
    found = for_ort_int8(wired(draw.model(draw.rounded(draw.node("MaxPool", value, **POOL), 1))), tensor_array)
    constants = arrays(found)
    assert [int(constants[node.input[2]]) for node in found.graph.node if "Linear" in node.op_type] == [0] * 4


def test_what_is_given_is_not_changed() -> None:
    model = wired(network(0))
    before = model.SerializeToString(deterministic=True)
    for_ort_int8(model, tensor_array)
    assert model.SerializeToString(deterministic=True) == before
