"""Conversion of INT8 and FP16 graphs to float32, in which ONNX Runtime runs them on a CPU with shared weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.onnx_wire import Message, NodeProto, make_tensor, tensor_array
from .graph_edits import attribute_int, copy_without_types, drop_unread, replace_nodes

__all__ = ["kernel_scales", "to_fp32"]

_Array = NDArray[Any]

_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType
_INT, _INTS = 2, 7  # AttributeProto.AttributeType
_TYPES = frozenset({"dtype", "output_dtype", "to"})
"""Names of ONNX node attributes that hold an element type."""


def kernel_scales(model: Message) -> Iterator[tuple[str, _Array]]:
    """Yield (name of an int8 kernel, scale ``[channels]`` float32) for each DequantizeLinear that reads a kernel."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            yield node.input[0], tensor_array(constants[node.input[1]])


def to_fp32(model: Message, values: Callable[[Message], _Array], integers: Set[str] = frozenset()) -> Message:
    """Return an INT8 or FP16 graph converted to float32: weights keep rounded values, activations are not rounded.

    Int8 kernels are multiplied by their scales, except the kernels in ``integers``. Those keep their integer values,
    which are the same for all models that share the kernel, and the layer's output is multiplied by the scale instead.
    For a convolution, a depthwise 1x1 convolution does this (weight = scale, bias = the layer's bias), as the compiler
    writes a BatchNorm that it does not fold; for a matrix product, a Mul does. Depthwise kernels are always multiplied
    by their scales: they are so small that sharing them does not justify an extra layer.

    Args:
        model: a ModelProto, which is not changed.
        values: function that returns the values of an initializer, called with the initializer.
        integers: names of int8 kernels that are read with several scales, in this graph or in others.
    """
    made = copy_without_types(model)
    graph = made.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[Message]] = defaultdict(list)
    for node in graph.node:
        for name in {*node.input}:
            readers[name].append(node)
    scale_of: dict[str, _Array] = {}
    nodes: list[Message] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            output, scale = node.output[0], tensor_array(constants[node.input[1]])
            kernel = values(constants[node.input[0]]).astype(np.float32)
            axis = attribute_int(node, "axis", 1) % kernel.ndim
            shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
            if node.input[0] in integers and all(_can_scale(each, output, kernel, axis) for each in readers[output]):
                scale_of[output] = scale.reshape(-1, *[1] * (kernel.ndim - 1)) if kernel.ndim > 2 else scale
            else:
                kernel *= scale.reshape(shape)
            graph.initializer.append(make_tensor(output, kernel))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(NodeProto(op_type="Identity", input=node.input[:1], output=node.output))
        elif len(node.input) > 1 and node.input[1] in scale_of:
            nodes.extend(_scaled(graph, node, scale_of[node.input[1]]))
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)
    drop_unread(graph)
    _float16_to_float32(graph, values)
    return made


def _can_scale(layer: Message, kernel: str, values: _Array, axis: int) -> bool:
    """Return whether a layer's output can be scaled instead of its kernel, and whether that justifies an extra layer.

    ``axis`` is the axis of the kernel along which the scale varies.
    """
    if [index for index, name in enumerate(layer.input) if name == kernel] != [1]:
        return False
    if layer.op_type == "Conv":
        return axis == 0 and values.shape[1] > 1
    if layer.op_type == "ConvTranspose":
        return axis == 1 and attribute_int(layer, "group", 1) == 1
    if layer.op_type == "Gemm":
        beta = next((attribute.f for attribute in layer.attribute if attribute.name == "beta"), 1.0)
        return axis == (0 if attribute_int(layer, "transB", 0) else 1) and beta == 1
    return layer.op_type == "MatMul" and values.ndim == 2 and axis == 1


def _scaled(graph: Message, layer: Message, scale: _Array) -> list[Message]:
    """Return a layer without its bias, followed by nodes that scale its output and add the bias."""
    output, bias = layer.output[0], [name for name in layer.input[2:] if name]
    factor, unscaled = f"{output}.factor", f"{output}.unscaled"
    graph.initializer.append(make_tensor(factor, scale))
    del layer.input[2:]
    layer.output[0] = unscaled
    if layer.op_type in ("Conv", "ConvTranspose"):
        conv = NodeProto(op_type="Conv", input=[unscaled, factor, *bias], output=[output])
        conv.attribute.add(name="group", i=len(scale), type=_INT)
        conv.attribute.add(name="kernel_shape", ints=[1] * (scale.ndim - 2), type=_INTS)
        return [layer, conv]
    if not bias:
        return [layer, NodeProto(op_type="Mul", input=[unscaled, factor], output=[output])]
    scaled = f"{output}.scaled"
    return [
        layer,
        NodeProto(op_type="Mul", input=[unscaled, factor], output=[scaled]),
        NodeProto(op_type="Add", input=[scaled, *bias], output=[output]),
    ]


def _float16_to_float32(graph: Message, values: Callable[[Message], _Array]) -> None:
    """Convert every float16 in a graph to float32.

    A Cast between the two types becomes a Cast from float32 to float32, which ONNX Runtime removes.
    """
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type == _FLOAT16:
            port.type.tensor_type.elem_type = _FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i == _FLOAT16:
                attribute.i = _FLOAT
            elif attribute.t.data_type == _FLOAT16:
                attribute.t.CopyFrom(make_tensor(attribute.t.name, tensor_array(attribute.t).astype(np.float32)))
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT16:
            tensor.CopyFrom(make_tensor(tensor.name, values(tensor).astype(np.float32)))
