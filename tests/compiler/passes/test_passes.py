"""Passes: each makes its one change, keeps the outputs of the graph, and leaves other nodes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from gemel.bundles.blob import tensor_id
from gemel.compiler.passes import (
    BatchNormToConv,
    DropInventedBiases,
    FoldBatchNorm,
    FoldConstants,
    FusePad,
    LiftConstants,
    ScaleToBatchNorm,
    WidenFloats,
    choose_batch_norm,
)

RNG = np.random.default_rng(0)
IMAGE = RNG.random((2, 4, 9, 9), np.float32)


class Graph:
    """Builder of a small graph from an image to the output of its last operator."""

    def __init__(self) -> None:
        self.image = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 4, 9, 9]))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.dtype = ir.DataType.from_numpy(array.dtype)
        self.weights.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes=attributes)
        node.outputs[0].name = f"out{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def conv(self, x: ir.Value, name: str, out: int = 6, into: int = 4, **attributes: Any) -> ir.Value:
        kernel = RNG.standard_normal((out, into // attributes.get("group", 1), 3, 3)).astype(np.float32)
        return self.op("Conv", x, self.weight(f"{name}.weight", kernel), **attributes)

    def norm(self, x: ir.Value, name: str, channels: int = 6) -> ir.Value:
        values = [RNG.random(channels).astype(np.float32) + 0.5 for _ in range(4)]
        names = [f"{name}.{part}" for part in ("weight", "bias", "mean", "var")]
        return self.op("BatchNormalization", x, *map(self.weight, names, values), epsilon=1e-3)

    def model(self, output: ir.Value) -> ir.Model:
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["batch", *([None] * 3)])
        graph = ir.Graph(
            [self.image], [output], nodes=self.nodes, initializers=self.weights, opset_imports={"": 20}, name="g"
        )
        return ir.Model(graph, ir_version=10)


def run(model: ir.Model) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    result: NDArray[np.float32] = session.run(None, {"image": IMAGE})[0]
    return result


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def unchanged(model: ir.Model, edit: Callable[[ir.Model], Any]) -> None:
    """Apply ``edit`` to a model and check that its outputs stay the same."""
    before = run(model)
    edit(model)
    np.testing.assert_allclose(run(model), before, rtol=1e-4, atol=1e-5)


def test_fold_batch_norm() -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.norm(graph.conv(graph.image, "conv"), "bn")))
    unchanged(model, lambda model: FoldBatchNorm()(model))
    assert kinds(model) == ["Conv", "Relu"]
    assert set(model.graph.initializers) >= {"conv.weight", "bn.bias"}


def test_fold_keeps_a_bias_and_an_output_name() -> None:
    graph = Graph()
    kernel = graph.weight("k", RNG.standard_normal((6, 4, 1, 1)).astype(np.float32))
    bias = graph.weight("b", RNG.standard_normal(6).astype(np.float32))
    output = graph.norm(graph.op("Conv", graph.image, kernel, bias), "bn")
    output.name = "answer"
    model = graph.model(output)
    unchanged(model, lambda model: FoldBatchNorm()(model))
    assert kinds(model) == ["Conv"]
    assert [port.name for port in model.graph.outputs] == ["answer"]


def per_channel(graph: Graph, name: str, *shape: int) -> ir.Value:
    return graph.weight(name, RNG.random(shape).astype(np.float32) + 0.5)


@pytest.mark.parametrize("shifted", [True, False])
def test_a_scale_and_a_shift_are_folded_as_a_batch_norm(shifted: bool) -> None:
    graph = Graph()
    out = graph.op("Mul", per_channel(graph, "scale", 1, 6, 1, 1), graph.conv(graph.image, "conv"))
    if shifted:
        out = graph.op("Add", out, per_channel(graph, "shift", 6, 1, 1))
    out.name = "answer"
    model = graph.model(out)
    unchanged(model, lambda model: FoldBatchNorm()(ScaleToBatchNorm()(model).model))
    assert kinds(model) == ["Conv"] and model.graph.outputs[0].name == "answer"


def test_a_shift_alone_is_a_bias_and_one_behind_a_bias_stays() -> None:
    graph = Graph()
    shift = per_channel(graph, "shift", 6, 1, 1)
    first = graph.op("Add", graph.conv(graph.image, "conv"), shift)
    second = graph.conv(first, "second", 4, 6)
    second.producer().resize_inputs(3)  # type: ignore[union-attr]
    second.producer().replace_input_with(2, per_channel(graph, "bias", 4))  # type: ignore[union-attr]
    model = graph.model(graph.op("Add", second, per_channel(graph, "other", 4, 1, 1)))
    unchanged(model, lambda model: ScaleToBatchNorm()(model))
    assert kinds(model) == ["Conv", "Conv", "Add"] and model.graph[0].inputs[2].name == "shift"  # type: ignore[union-attr]


def test_a_constant_that_is_read_twice_keeps_its_shape() -> None:
    graph = Graph()
    scale = per_channel(graph, "scale", 4, 1, 1)
    first = graph.op("Mul", graph.conv(graph.image, "first", 4), scale)
    model = graph.model(graph.op("Mul", graph.conv(first, "second", 4), scale))
    unchanged(model, lambda model: FoldBatchNorm()(ScaleToBatchNorm()(model).model))
    assert kinds(model) == ["Conv", "Conv"]


@pytest.mark.parametrize("shape", [(1, 9, 9), (4, 9, 9), (1, 1, 1)])
def test_other_constants_and_readers_stay(shape: tuple[int, ...]) -> None:
    graph = Graph()
    convolved = graph.conv(graph.image, "conv", 4, pads=[1, 1, 1, 1])
    scaled = graph.op("Mul", convolved, per_channel(graph, "map", *shape))
    twice = graph.conv(graph.image, "twice", 4, pads=[1, 1, 1, 1])
    other = graph.op("Mul", twice, per_channel(graph, "scale", 4, 1, 1))
    model = graph.model(graph.op("Add", graph.op("Add", scaled, other), twice))
    before = kinds(model)
    ScaleToBatchNorm()(model)
    assert kinds(model) == before


def test_fold_into_a_transposed_convolution() -> None:
    graph = Graph()
    kernel = graph.weight("k", RNG.standard_normal((4, 6, 2, 2)).astype(np.float32))
    model = graph.model(graph.norm(graph.op("ConvTranspose", graph.image, kernel, strides=[2, 2]), "bn"))
    unchanged(model, lambda model: FoldBatchNorm()(model))
    assert kinds(model) == ["ConvTranspose"]


def test_a_kept_kernel_keeps_its_bytes() -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.norm(graph.conv(graph.image, "conv"), "bn")))
    kernel = model.graph.initializers["conv.weight"].const_value
    assert kernel is not None
    keep = {tensor_id(kernel.numpy())}
    unchanged(model, lambda model: BatchNormToConv()(FoldBatchNorm(keep)(model).model))
    assert kinds(model) == ["Conv", "Conv", "Relu"]
    after = model.graph.initializers["conv.weight"].const_value
    assert after is not None
    assert tensor_id(after.numpy()) in keep


def test_what_another_node_reads_is_not_folded() -> None:
    graph = Graph()
    convolved = graph.conv(graph.image, "conv")
    model = graph.model(graph.op("Add", graph.norm(convolved, "bn"), convolved))
    unchanged(model, lambda model: FoldBatchNorm()(model))
    assert "BatchNormalization" in kinds(model)


def test_one_kernel_in_two_places_is_folded_only_under_one_batch_norm() -> None:
    def build(second: str) -> ir.Model:
        graph = Graph()
        kernel = graph.weight("k", RNG.standard_normal((4, 4, 1, 1)).astype(np.float32))
        first = graph.norm(graph.op("Conv", graph.image, kernel), "bn", 4)
        norm = graph.nodes[-1]
        x = graph.op("Conv", graph.op("Relu", first), kernel)
        if second == "same":
            return graph.model(graph.op("BatchNormalization", x, *norm.inputs[1:], epsilon=1e-3))
        return graph.model(graph.norm(x, "other", 4))

    same, other = build("same"), build("other")
    unchanged(same, lambda model: FoldBatchNorm()(model))
    unchanged(other, lambda model: FoldBatchNorm()(model))
    assert kinds(same) == ["Conv", "Relu", "Conv"]
    assert kinds(other).count("BatchNormalization") == 2


@pytest.mark.parametrize("fold", [FoldBatchNorm(), BatchNormToConv()])
def test_parameters_that_several_batch_norms_read_keep_their_values(fold: ir.passes.InPlacePass) -> None:
    """Check parameters that several BatchNorms read: one module behind two convolutions, or equal ones stored once."""
    graph = Graph()
    x = graph.norm(graph.conv(graph.image, "one"), "bn")
    parameters = graph.nodes[-1].inputs[1:]
    second = graph.op("BatchNormalization", graph.conv(graph.image, "two"), *parameters, epsilon=1e-3)
    gamma = parameters[0]
    third = graph.op("BatchNormalization", graph.conv(graph.image, "three"), gamma, gamma, gamma, gamma, epsilon=1e-3)
    model = graph.model(graph.op("Add", graph.op("Add", x, second), third))
    unchanged(model, lambda model: fold(model))
    assert "BatchNormalization" not in kinds(model)


def test_one_kernel_under_equal_scales_and_own_shifts_is_folded_once() -> None:
    graph = Graph()
    kernel = graph.weight("k", RNG.standard_normal((4, 4, 1, 1)).astype(np.float32))
    first = graph.norm(graph.op("Conv", graph.image, kernel), "bn", 4)
    gamma, _, _, variance = graph.nodes[-1].inputs[1:]
    shift = [graph.weight(name, RNG.random(4).astype(np.float32)) for name in ("beta2", "mean2")]
    x = graph.op("Conv", graph.op("Relu", first), kernel)
    model = graph.model(graph.op("BatchNormalization", x, gamma, *shift, variance, epsilon=1e-3))
    unchanged(model, lambda model: FoldBatchNorm()(model))
    assert kinds(model) == ["Conv", "Relu", "Conv"]


def test_batch_norm_without_a_convolution_stays() -> None:
    graph = Graph()
    model = graph.model(graph.conv(graph.op("Relu", graph.norm(graph.image, "bn", 4)), "conv"))
    unchanged(model, lambda model: BatchNormToConv()(FoldBatchNorm()(model).model))
    assert kinds(model) == ["BatchNormalization", "Relu", "Conv"]


def pair(out: int, height: int, group: int = 1) -> tuple[list[ir.Model], str]:
    """Return two models with one kernel and their own BatchNorms, and the tensor id of the kernel."""
    kernel = RNG.standard_normal((out, 4 // group, 3, 3)).astype(np.float32)
    models = []
    for _ in range(2):
        graph = Graph()
        convolved = graph.op("Conv", graph.image, graph.weight("k", kernel), group=group)
        convolved.shape = ir.Shape(["batch", out, height, height])
        models.append(graph.model(graph.norm(convolved, "bn", out)))
    return models, tensor_id(kernel)


def test_choose_keeps_what_own_batch_norms_would_make_different() -> None:
    models, kernel = pair(out=64, height=4)
    assert choose_batch_norm(models).keep == {kernel}
    assert choose_batch_norm(models[:1]).keep == frozenset()


def test_choose_waives_tiny_kernels_with_large_outputs_and_depthwise_ones() -> None:
    for models, kernel in (pair(out=4, height=200), pair(out=4, height=4, group=4)):
        assert choose_batch_norm(models).keep == frozenset()
        assert choose_batch_norm(models).waived == {kernel}


def test_equal_batch_norms_are_folded_alike() -> None:
    graph = Graph()
    model = graph.model(graph.norm(graph.conv(graph.image, "conv"), "bn"))
    twins = [model, model.clone()]
    assert choose_batch_norm(twins).keep == choose_batch_norm(twins).waived == frozenset()


def test_invented_biases_are_dropped_and_trained_zeros_stay() -> None:
    graph = Graph()
    zero = graph.op("Expand", graph.weight("z", np.zeros(1, np.float32)), graph.weight("s", np.array([6])))
    x = graph.op("Conv", graph.image, graph.weight("k", RNG.random((6, 4, 1, 1), np.float32)), zero)
    trained = graph.weight("b", np.zeros(6, np.float32))
    x = graph.op("Conv", x, graph.weight("k2", RNG.random((6, 6, 1, 1), np.float32)), trained)
    model = graph.model(x)
    unchanged(model, lambda model: DropInventedBiases()(model))
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert [len(conv.inputs) for conv in convs] == [2, 3]


def test_folding_never_touches_a_weight() -> None:
    graph = Graph()
    kernel = graph.weight("k", RNG.random((1, 1, 4, 6), np.float32))
    turned = graph.op("Transpose", kernel, perm=[3, 2, 0, 1])
    shape = graph.op("Concat", graph.weight("one", np.array([6])), graph.weight("rest", np.array([4, 1, 1])), axis=0)
    model = graph.model(graph.op("Conv", graph.image, graph.op("Reshape", turned, shape)))
    unchanged(model, lambda model: FoldConstants({"k"})(model))
    assert "Transpose" in kinds(model)
    assert "Concat" not in kinds(model)


def test_lift_constants() -> None:
    graph = Graph()
    kernel = RNG.standard_normal((6, 4, 1, 1)).astype(np.float32)
    model = graph.model(graph.op("Conv", graph.image, graph.op("Constant", value=ir.tensor(kernel))))
    unchanged(model, lambda model: LiftConstants()(model))
    assert kinds(model) == ["Conv"]


@pytest.mark.parametrize("fill", [None, 0.0])
def test_zero_padding_moves_into_convolutions(fill: float | None) -> None:
    graph = Graph()
    pads = graph.weight("pads", np.array([0, 0, 0, 1, 0, 0, 2, 1]))
    value = None if fill is None else graph.weight("fill", np.array(fill, np.float32))
    padded = graph.op("Pad", graph.image, pads, *([] if value is None else [value]))
    model = graph.model(graph.conv(padded, "conv", pads=[1, 0, 0, 0]))
    unchanged(model, lambda model: FusePad()(model))
    assert kinds(model) == ["Conv"]


@pytest.mark.parametrize("case", ["pool", "ones", "channels", "reflect"])
def test_other_padding_stays(case: str) -> None:
    graph = Graph()
    amounts = [0, 0, 1, 1, 0, 0, 1, 1] if case != "channels" else [0, 1, 0, 0, 0, 1, 0, 0]
    inputs = [graph.image, graph.weight("pads", np.array(amounts))]
    if case == "ones":
        inputs.append(graph.weight("fill", np.array(1, np.float32)))
    padded = graph.op("Pad", *inputs, mode="reflect" if case == "reflect" else "constant")
    if case == "pool":
        output = graph.op("MaxPool", padded, kernel_shape=[2, 2])
    else:
        output = graph.conv(padded, "conv", into=6 if case == "channels" else 4)
    model = graph.model(output)
    unchanged(model, lambda model: FusePad()(model))
    assert kinds(model)[0] == "Pad"


@pytest.mark.parametrize("reader", ["Mul", "Relu", "output"])
def test_choose_counts_what_reads_a_kernel_in_another_way(reader: str) -> None:
    (model, _), kernel = pair(out=64, height=4)
    graph = Graph()
    value = graph.weight("k", model.graph.initializers["k"].const_value.numpy())  # type: ignore[union-attr]
    if reader == "output":
        other = graph.model(graph.op("Conv", graph.image, value))
        other.graph.outputs.append(value)
    elif reader == "Mul":
        other = graph.model(graph.op("Conv", graph.image, graph.op("Mul", value, value)))
    else:
        other = graph.model(graph.op("Relu", graph.op("Conv", graph.image, value)))
    choice = choose_batch_norm([model, other])
    assert (choice.keep, choice.waived) == (frozenset({kernel}), frozenset())
    before = tensor_id(other.graph.initializers["k"].const_value.numpy())  # type: ignore[union-attr]
    for each in (model, other):
        FoldBatchNorm(choice.keep)(each)
        assert tensor_id(each.graph.initializers["k"].const_value.numpy()) == before == kernel  # type: ignore[union-attr]


def test_a_kernel_that_is_an_output_is_not_folded() -> None:
    graph = Graph()
    convolved = graph.conv(graph.image, "conv")
    model = graph.model(graph.norm(convolved, "bn"))
    model.graph.outputs.append(model.graph.initializers["conv.weight"])
    FoldBatchNorm()(model)
    assert kinds(model) == ["Conv", "BatchNormalization"]


def test_float16_is_widened_everywhere() -> None:
    half = np.float16
    graph = Graph()
    x = graph.op("Cast", graph.image, to=int(ir.DataType.FLOAT16))
    x = graph.op("Conv", x, graph.weight("k", RNG.standard_normal((6, 4, 1, 1)).astype(half)))
    x = graph.op("Add", x, graph.op("Constant", value=ir.tensor(np.array([2], half))))
    model = graph.model(graph.op("Cast", x, to=int(ir.DataType.FLOAT)))
    before = run(model)
    WidenFloats()(model)
    np.testing.assert_allclose(run(model), before, rtol=1e-2, atol=1e-2)
    assert [node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"] == [ir.DataType.FLOAT] * 2
    assert model.graph.initializers["k"].dtype == ir.DataType.FLOAT
    assert not WidenFloats()(model).modified
