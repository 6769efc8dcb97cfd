"""INT8 and FP16 graphs, written anew for ONNX Runtime on a CPU.

An INT8 graph says what is rounded: kernels are int8 tensors behind a DequantizeLinear with a scale for each output
channel, activations go through QuantizeLinear and DequantizeLinear, all with zero point 0. ONNX Runtime makes integer
arithmetic of that if activations are uint8 (:func:`for_ort_int8`), and is fast if it may pack the kernels, which is a
copy for each session. What can be swapped and shared is the same graph in float32 (:func:`to_fp32`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.onnx_wire import Message, NodeProto, make_tensor, tensor_array

__all__ = ["for_ort_int8", "kernel_scales", "to_fp32"]

_Array = NDArray[Any]

_FLOAT, _HALF = 1, 10  # TensorProto.DataType
_INT, _INTS = 2, 7  # AttributeProto.AttributeType

_AT_LEAST_0 = frozenset({"HardSigmoid", "Relu", "Sigmoid", "Softmax"})
_AS_FIRST = frozenset(
    {"AveragePool", "DequantizeLinear", "Flatten", "GlobalAveragePool", "MaxPool", "QuantizeLinear", "ReduceMean"}
    | {"Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Not negative where their first input is not."""
_AS_ALL = frozenset({"Add", "Concat", "Mul"})
_TYPES = frozenset({"dtype", "output_dtype", "to"})
"""Attributes that are element types."""


def for_ort_int8(model: Message, values: Callable[[Message], _Array]) -> Message:
    """An INT8 graph with uint8 activations and int32 biases, as ONNX Runtime's integer kernels want them.

    A tensor that cannot be negative gets zero point 0: 0 to 255 in place of 0 to 127, so that less is cut off, and a
    Relu before it has nothing left to do. Others get 128 with the same scale, which are the same values.

    Args:
        model: a ModelProto; not changed.
        values: gives the values of an initializer.
    """
    made = _copy(model)
    graph = made.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    positive = _never_negative(graph, constants)
    zeros = {"zero.uint8": 0, "middle.uint8": 128}
    zero_of: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            zero_of[node.output[0]] = "zero.uint8" if node.input[0] in positive else "middle.uint8"
            _set_zero(node, zero_of[node.output[0]])
        elif node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            _set_zero(node, zero_of[node.input[0]])
        elif node.op_type == "DequantizeLinear":
            # Matrix products become integer ones only where even zeros are said.
            scale = tensor_array(constants[node.input[1]])
            graph.initializer.append(make_tensor(f"{node.output[0]}.zero", np.zeros(scale.shape, np.int8)))
            _set_zero(node, f"{node.output[0]}.zero")
    graph.initializer.extend(make_tensor(name, np.array(zero, np.uint8)) for name, zero in zeros.items())
    _round_biases(graph, constants, values)
    _drop_unread(graph)
    return made


def kernel_scales(model: Message) -> Iterator[tuple[str, _Array]]:
    """The name of an int8 kernel and a scale by which it is read, ``[channels]`` float32, for each time it is read."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            yield node.input[0], tensor_array(constants[node.input[1]])


def to_fp32(model: Message, values: Callable[[Message], _Array], apart: Set[str] = frozenset()) -> Message:
    """An INT8 or FP16 graph in float32: its weights stay rounded as they are, what is computed is not rounded.

    Int8 kernels are multiplied by their scales, all but those in ``apart``. These stay integers, which are the same for
    everyone, and it is the layer's output that is scaled: behind a convolution by a depthwise 1x1 one (weight = scale,
    and the bias), as the compiler writes a BatchNorm that is kept apart, behind a matrix product by a Mul. Depthwise
    kernels are multiplied in any case: they are so small that sharing them is not worth another layer.

    Args:
        model: a ModelProto; not changed.
        values: gives the values of an initializer.
        apart: names of int8 kernels that are read by several scales, in this graph or in others.
    """
    made = _copy(model)
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
            axis = _number(node, "axis", 1) % kernel.ndim
            shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
            if node.input[0] in apart and all(_can_scale(each, output, kernel, axis) for each in readers[output]):
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
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread(graph)
    _without_halves(graph, values)
    return made


def _copy(model: Message) -> Message:
    made = type(model)()
    made.CopyFrom(model)
    # Types of what lies between are other ones afterwards; ONNX Runtime finds them itself.
    made.graph.ClearField("value_info")
    return made


def _set_zero(node: Message, zero: str) -> None:
    del node.input[2:]
    node.input.append(zero)


def _drop_unread(graph: Message) -> None:
    read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _round_biases(graph: Message, constants: Mapping[str, Message], values: Callable[[Message], _Array]) -> None:
    """Biases of layers that take and hold int8: int32, in units of what both scales multiply to.

    ONNX Runtime can do it, too, but goes on to round kernels that are float32 on purpose.
    """
    scale_of = {
        node.output[0]: (node.input[0] in constants, tensor_array(constants[node.input[1]]))
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    nodes: list[Message] = []
    for node in graph.node:
        bias = node.input[2] if len(node.input) > 2 else ""
        if (
            node.op_type in ("Conv", "Gemm")
            and bias in constants
            and node.input[0] in scale_of
            and scale_of.get(node.input[1], (False, None))[0]
            and all(attribute.f == 1 for attribute in node.attribute if attribute.name in ("alpha", "beta"))
        ):
            scale = (scale_of[node.input[0]][1] * scale_of[node.input[1]][1]).astype(np.float32)
            # What does not fit is larger than whatever it could be added to.
            whole = np.rint(values(constants[bias]) / scale.astype(np.float64)).clip(-(2**31), 2**31 - 1)
            names = [f"{node.output[0]}.bias{ending}" for ending in (".int32", ".scale", "")]
            graph.initializer.append(make_tensor(names[0], whole.astype(np.int32)))
            graph.initializer.append(make_tensor(names[1], scale))
            rounded = NodeProto(op_type="DequantizeLinear", input=names[:2], output=names[2:])
            rounded.attribute.add(name="axis", i=0, type=_INT)
            nodes.append(rounded)
            node.input[2] = names[2]
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _never_negative(graph: Message, constants: Mapping[str, Message]) -> set[str]:
    """Values of which it is certain."""
    found: set[str] = set()

    def at_least_0(node: Message, operand: int) -> bool:
        """An operand that is a constant, and not negative."""
        name = node.input[operand] if len(node.input) > operand else ""
        return name in constants and bool((tensor_array(constants[name]) >= 0).all())

    for node in graph.node:
        kind = node.op_type
        if (
            kind in _AT_LEAST_0
            or (kind == "Clip" and at_least_0(node, 1))
            or (kind in _AS_FIRST and node.input[0] in found)
            or (kind in _AS_ALL and found.issuperset(node.input))
            or (kind == "Pad" and node.input[0] in found and (not any(node.input[2:3]) or at_least_0(node, 2)))
        ):
            found.update(node.output)
    return found


def _can_scale(layer: Message, kernel: str, values: _Array, axis: int) -> bool:
    """Whether scaling a kernel along an axis is scaling the channels of the layer's output, and worth a layer."""
    if [index for index, name in enumerate(layer.input) if name == kernel] != [1]:
        return False
    if layer.op_type == "Conv":
        return axis == 0 and values.shape[1] > 1
    if layer.op_type == "ConvTranspose":
        return axis == 1 and _number(layer, "group", 1) == 1
    if layer.op_type == "Gemm":
        beta = next((attribute.f for attribute in layer.attribute if attribute.name == "beta"), 1.0)
        return axis == (0 if _number(layer, "transB", 0) else 1) and beta == 1
    return layer.op_type == "MatMul" and values.ndim == 2 and axis == 1


def _scaled(graph: Message, layer: Message, scale: _Array) -> list[Message]:
    """A layer without its bias, then what scales its output and adds the bias."""
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


def _without_halves(graph: Message, values: Callable[[Message], _Array]) -> None:
    """Put float32 in place of float16; a Cast is one to the same type then, which ONNX Runtime takes out."""
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type == _HALF:
            port.type.tensor_type.elem_type = _FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i == _HALF:
                attribute.i = _FLOAT
            elif attribute.t.data_type == _HALF:
                attribute.t.CopyFrom(make_tensor(attribute.t.name, tensor_array(attribute.t).astype(np.float32)))
    for tensor in graph.initializer:
        if tensor.data_type == _HALF:
            tensor.CopyFrom(make_tensor(tensor.name, values(tensor).astype(np.float32)))


def _number(node: Message, name: str, default: int) -> int:
    return int(next((attribute.i for attribute in node.attribute if attribute.name == name), default))
