"""INT8 and FP16 graphs in other forms mean the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from int8 import CHANNELS, Array, Drawing, images, network, random_int8, wired
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gemel.bundles.onnx_wire import tensor_array
from gemel.bundles.program import read_model
from gemel.runtime.ort.cpu_precision import for_ort_int8, kernel_scales, to_fp32
from gemel.runtime.ort.optimise import optimise_int8


def run(model: Any, inputs: dict[str, Array]) -> Array:
    """As the nodes say: optimised, ONNX Runtime rounds more than that."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    output: Array = ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]
    return output


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, whose activations are not rounded; kernels are still read through DequantizeLinear."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants:
            node.op_type = "Identity"
            del node.input[1:]
    made.graph.ClearField("value_info")
    return made


def kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def arrays(model: Any) -> dict[str, Array]:
    return {tensor.name: tensor_array(tensor) for tensor in model.graph.initializer}


def close(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


Layer = Callable[[Drawing, str], str]


def conv(draw: Drawing, kernel: str) -> str:
    return draw.node("Conv", draw.rounded("image", 3), kernel, draw.bias(6), strides=[2, 2], pads=[1, 1, 1, 1])


def conv_without_bias(draw: Drawing, kernel: str) -> str:
    return draw.node("Relu", draw.node("Conv", "image", kernel))


def grouped(draw: Drawing, kernel: str) -> str:
    return draw.node("Conv", draw.node("Concat", "image", "image", axis=1), kernel, draw.bias(6), group=3)


def transposed(draw: Drawing, kernel: str) -> str:
    return draw.node("ConvTranspose", "image", kernel, draw.bias(6), strides=[2, 2])


def flat(draw: Drawing) -> str:
    return draw.node("Flatten", draw.node("GlobalAveragePool", "image"))


def gemm(draw: Drawing, kernel: str) -> str:
    return draw.node("Gemm", flat(draw), kernel, draw.bias(6), transB=1, alpha=0.5)


def gemm_without_bias(draw: Drawing, kernel: str) -> str:
    return draw.node("Gemm", flat(draw), kernel)


def matmul(draw: Drawing, kernel: str) -> str:
    return draw.node("MatMul", draw.node("Transpose", "image", perm=[0, 2, 3, 1]), kernel)


def depthwise(draw: Drawing, kernel: str) -> str:
    return draw.node("Conv", "image", kernel, draw.bias(3), group=3)


def half_a_bias(draw: Drawing, kernel: str) -> str:
    return draw.node("Gemm", flat(draw), kernel, draw.bias(6), transB=1, beta=0.5)


def transposed_in_groups(draw: Drawing, kernel: str) -> str:
    return draw.node("ConvTranspose", "image", kernel, group=3)


def read_elsewhere(draw: Drawing, kernel: str) -> str:
    return draw.node("Gemm", flat(draw), kernel, draw.node("ReduceMean", kernel), transB=1)


SCALED: list[tuple[Layer, tuple[int, ...], int, list[str]]] = [
    (conv, (6, 3, 3, 3), 0, ["Conv", "Conv"]),
    (conv_without_bias, (6, 3, 3, 3), 0, ["Conv", "Conv"]),
    (grouped, (6, 2, 3, 3), 0, ["Conv", "Conv"]),
    (transposed, (3, 6, 2, 2), 1, ["ConvTranspose", "Conv"]),
    (gemm, (6, 3), 0, ["Gemm", "Mul", "Add"]),
    (gemm_without_bias, (3, 6), 1, ["Gemm", "Mul"]),
    (matmul, (3, 6), -1, ["MatMul", "Mul"]),
]
MULTIPLIED: list[tuple[Layer, tuple[int, ...], int]] = [
    (depthwise, (3, 1, 3, 3), 0),
    (half_a_bias, (6, 3), 0),
    (transposed_in_groups, (3, 2, 2, 2), 1),
    (matmul, (3, 6), 0),
    (read_elsewhere, (6, 3), 0),
]


def drawn(layer: Layer, shape: tuple[int, ...], axis: int) -> onnx.ModelProto:
    draw = Drawing()
    scale = np.random.default_rng(5).uniform(0.5, 1.5, shape[axis]) / 500
    return draw.model(layer(draw, draw.kernel(random_int8(1, *shape), scale, axis, "kernel")))


@pytest.mark.parametrize(("layer", "shape", "axis", "left"), SCALED)
def test_a_kernel_of_several_scales_stays_integers(
    layer: Layer, shape: tuple[int, ...], axis: int, left: list[str]
) -> None:
    model = drawn(layer, shape, axis)
    found = to_fp32(wired(model), tensor_array, {"kernel"})
    close(run(found, images(2)), run(unrounded(model), images(2)))
    (kernel,) = (values for values in arrays(found).values() if values.shape == shape)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, random_int8(1, *shape))
    names = [node.op_type for node in found.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", *left)]
    assert names == left
    onnx.checker.check_model(onnx.load_from_string(found.SerializeToString()))


@pytest.mark.parametrize(
    ("layer", "shape", "axis", "apart"),
    [(layer, shape, axis, False) for layer, shape, axis, _ in SCALED] + [(*case, True) for case in MULTIPLIED],
)
def test_a_kernel_of_one_scale_or_a_small_one_is_multiplied(
    layer: Layer, shape: tuple[int, ...], axis: int, apart: bool
) -> None:
    model = drawn(layer, shape, axis)
    found = to_fp32(wired(model), tensor_array, {"kernel"} if apart else frozenset())
    close(run(found, images(2)), run(unrounded(model), images(2)))
    expected = kinds(model)
    rounding = expected.pop("QuantizeLinear", 0) + expected.pop("DequantizeLinear") - 1
    assert kinds(found) == expected + Counter(Identity=rounding)
    assert "kernel" not in arrays(found)


@pytest.mark.parametrize("apart", [frozenset(), {"stem", "depthwise", "wide", "head"}])
def test_a_network_in_float32(apart: set[str]) -> None:
    model = network(0)
    found = to_fp32(wired(model), tensor_array, apart)
    close(run(found, images(2)), run(unrounded(model), images(2)))
    assert kinds(found)["Conv"] == (5 if apart else 3)
    assert {values.dtype.name for values in arrays(found).values()} <= {"float32", "int64"}


def test_scales_of_kernels() -> None:
    found = dict(kernel_scales(wired(network(0))))
    assert {name: scale.shape for name, scale in found.items()} == {
        "stem": (CHANNELS,),
        "depthwise": (CHANNELS,),
        "wide": (CHANNELS,),
        "head": (5,),
    }


def test_unsigned_says_what_signed_says() -> None:
    model = network(0)
    found = for_ort_int8(wired(model), tensor_array)
    # A bias may be off by half a unit, and what was on the edge then goes the other way.
    close(run(found, images(4)), run(model, images(4)), 1e-2)
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
    """ONNX Runtime would round its kernel by one scale, in which the small channel is nothing."""
    draw = Drawing()
    kernel = np.ones((2, 3, 1, 1), np.float32) * np.array([1000, 0.01], np.float32).reshape(2, 1, 1, 1)
    value = draw.node("Conv", draw.rounded("image", 2.0), draw.constant(kernel), draw.bias(2))
    model = draw.model(draw.rounded(value, 4.0))
    packed = optimise_int8(
        tmp_path / "model.onnx", for_ort_int8(wired(model), tensor_array).SerializeToString(), tmp_path
    )
    kept = [tensor_array(tensor) for tensor in read_model(packed).graph.initializer if len(tensor.dims) == 4]
    assert [values.dtype for values in kept] == [np.float32]


def test_layers_become_integer_ones(tmp_path: Path) -> None:
    draw = Drawing()
    kernel = draw.kernel(np.ones((2, 3, 16, 16), np.int8), np.array([0.1, 0.2]), 0)
    value = draw.rounded(draw.node("Relu", draw.node("Conv", draw.rounded("image", 2.0), kernel, draw.bias(2))), 4.0)
    kernel = draw.kernel(np.ones((5, 2), np.int8), np.full(5, 0.1), 0)
    model = draw.model(
        draw.node("Gemm", draw.rounded(draw.node("Flatten", value), 4.0), kernel, draw.bias(5), transB=1)
    )
    packed = optimise_int8(
        tmp_path / "model.onnx", for_ort_int8(wired(model), tensor_array).SerializeToString(), tmp_path
    )
    kinds = Counter(node.op_type for node in read_model(packed).graph.node)
    assert kinds["QLinearConv"] == kinds["QGemm"] == 1
    assert not kinds["Conv"] and not kinds["Gemm"] and not kinds["Relu"]


def positive(last: Layer) -> bool:
    """Whether a value is taken for one that cannot be negative."""
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
    assert positive(last)


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
    assert not positive(last)


def test_rounding_in_a_chain_keeps_zero_points() -> None:
    draw = Drawing()
    value = draw.rounded(draw.node("Relu", "image"), 1)
    found = for_ort_int8(wired(draw.model(draw.rounded(draw.node("MaxPool", value, **POOL), 1))), tensor_array)
    constants = arrays(found)
    assert [int(constants[node.input[2]]) for node in found.graph.node if "Linear" in node.op_type] == [0] * 4


def in_halves() -> onnx.ModelProto:
    """Weights, a bound, a cast and a constant in float16; inputs and outputs are float32."""
    draw = Drawing()
    value = draw.node("Cast", "image", to=TensorProto.FLOAT16)
    kernel = draw.constant(draw.random.normal(0, 1, (4, 3, 3, 3)).astype(np.float16))
    value = draw.node("Clip", draw.node("Conv", value, kernel), draw.constant(np.float16(0)))
    shape = draw.node("Shape", value)
    ones = draw.node("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([1], np.float16)))
    value = draw.node("Add", value, ones)
    return draw.model(draw.node("Cast", value, to=TensorProto.FLOAT))


def converted() -> onnx.ModelProto:
    draw = Drawing()
    kernel = draw.constant(draw.random.normal(0, 1, (4, 3, 3, 3)).astype(np.float32))
    value = draw.node("Relu", draw.node("Conv", "image", kernel, draw.bias(4)))
    model = draw.model(draw.node("Softmax", value, axis=1))
    made = ir.from_proto(convert_float_to_float16(model, keep_io_types=True, op_block_list=["Softmax"]))
    made.graph.sort()
    sorted_made: onnx.ModelProto = ir.to_proto(made)
    return sorted_made


@pytest.mark.parametrize("make", [in_halves, converted])
def test_halves(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    found = to_fp32(wired(model), tensor_array)
    close(run(found, images(2)), run(model, images(2)), 3e-3)
    again = onnx.load_from_string(found.SerializeToString())
    onnx.checker.check_model(again)
    types = onnx.shape_inference.infer_shapes(again, strict_mode=True).graph.value_info
    assert TensorProto.FLOAT16 not in {value.type.tensor_type.elem_type for value in types}
    halves = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, values in arrays(found).items():
        np.testing.assert_array_equal(values, halves[name])


def test_ports_in_halves() -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    output = run(to_fp32(wired(model), tensor_array), {"image": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(output, np.array([0, 2], np.float32))


def test_what_is_given_is_not_changed() -> None:
    model = wired(network(0))
    before = model.SerializeToString(deterministic=True)
    for_ort_int8(model, tensor_array)
    to_fp32(model, tensor_array, {"stem"})
    assert model.SerializeToString(deterministic=True) == before
