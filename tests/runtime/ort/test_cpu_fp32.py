"""INT8 and FP16 graphs that are converted to float32 compute the same, and kernels of several scales stay integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from int8 import CHANNELS, Drawing, arrays, close, images, network, random_int8, run_as_written, wired
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gemel.bundles.onnx_wire import tensor_array
from gemel.runtime.ort.cpu_fp32 import kernel_scales, to_fp32


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph without rounding of activations; kernels still go through DequantizeLinear."""
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


def gemm_with_half_of_its_bias(draw: Drawing, kernel: str) -> str:
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
    (gemm_with_half_of_its_bias, (6, 3), 0),
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
    close(run_as_written(found, images(2)), run_as_written(unrounded(model), images(2)))
    (kernel,) = (values for values in arrays(found).values() if values.shape == shape)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, random_int8(1, *shape))
    names = [node.op_type for node in found.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", *left)]
    assert names == left
    onnx.checker.check_model(onnx.load_from_string(found.SerializeToString()))


@pytest.mark.parametrize(
    ("layer", "shape", "axis", "integers"),
    [(layer, shape, axis, False) for layer, shape, axis, _ in SCALED] + [(*case, True) for case in MULTIPLIED],
)
def test_a_kernel_of_one_scale_or_a_small_one_is_multiplied(
    layer: Layer, shape: tuple[int, ...], axis: int, integers: bool
) -> None:
    model = drawn(layer, shape, axis)
    found = to_fp32(wired(model), tensor_array, {"kernel"} if integers else frozenset())
    close(run_as_written(found, images(2)), run_as_written(unrounded(model), images(2)))
    expected = kinds(model)
    rounding = expected.pop("QuantizeLinear", 0) + expected.pop("DequantizeLinear") - 1
    assert kinds(found) == expected + Counter(Identity=rounding)
    assert "kernel" not in arrays(found)


@pytest.mark.parametrize("integers", [frozenset(), {"stem", "depthwise", "wide", "head"}])
def test_a_network_in_float32(integers: set[str]) -> None:
    model = network(0)
    found = to_fp32(wired(model), tensor_array, integers)
    close(run_as_written(found, images(2)), run_as_written(unrounded(model), images(2)))
    assert kinds(found)["Conv"] == (5 if integers else 3)
    assert {values.dtype.name for values in arrays(found).values()} <= {"float32", "int64"}


def test_scales_of_kernels() -> None:
    found = dict(kernel_scales(wired(network(0))))
    assert {name: scale.shape for name, scale in found.items()} == {
        "stem": (CHANNELS,),
        "depthwise": (CHANNELS,),
        "wide": (CHANNELS,),
        "head": (5,),
    }


def float16_model() -> onnx.ModelProto:
    """Return a model with weights, a bound, a cast and a constant in float16; inputs and outputs are float32."""
    draw = Drawing()
    value = draw.node("Cast", "image", to=TensorProto.FLOAT16)
    kernel = draw.constant(draw.random.normal(0, 1, (4, 3, 3, 3)).astype(np.float16))
    value = draw.node("Clip", draw.node("Conv", value, kernel), draw.constant(np.float16(0)))
    shape = draw.node("Shape", value)
    ones = draw.node("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([1], np.float16)))
    value = draw.node("Add", value, ones)
    return draw.model(draw.node("Cast", value, to=TensorProto.FLOAT))


def converted() -> onnx.ModelProto:
    """Return a float32 model that onnxruntime.transformers has converted, except its Softmax."""
    draw = Drawing()
    kernel = draw.constant(draw.random.normal(0, 1, (4, 3, 3, 3)).astype(np.float32))
    value = draw.node("Relu", draw.node("Conv", "image", kernel, draw.bias(4)))
    model = draw.model(draw.node("Softmax", value, axis=1))
    made = ir.from_proto(convert_float_to_float16(model, keep_io_types=True, op_block_list=["Softmax"]))
    made.graph.sort()
    sorted_made: onnx.ModelProto = ir.to_proto(made)
    return sorted_made


@pytest.mark.parametrize("make", [float16_model, converted])
def test_float16_becomes_float32(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    found = to_fp32(wired(model), tensor_array)
    close(run_as_written(found, images(2)), run_as_written(model, images(2)), 3e-3)
    again = onnx.load_from_string(found.SerializeToString())
    onnx.checker.check_model(again)
    types = onnx.shape_inference.infer_shapes(again, strict_mode=True).graph.value_info
    assert TensorProto.FLOAT16 not in {value.type.tensor_type.elem_type for value in types}
    float16 = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, values in arrays(found).items():
        np.testing.assert_array_equal(values, float16[name])


def test_float16_ports_become_float32() -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    output = run_as_written(to_fp32(wired(model), tensor_array), {"image": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(output, np.array([0, 2], np.float32))


def test_what_is_given_is_not_changed() -> None:
    model = wired(network(0))
    before = model.SerializeToString(deterministic=True)
    to_fp32(model, tensor_array, {"stem"})
    assert model.SerializeToString(deterministic=True) == before
