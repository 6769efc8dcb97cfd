"""Conversion of a graph to int8: QuantizeLinear/DequantizeLinear pairs around its layers, and int8 kernels.

TensorRT 10 and 11 and ONNX Runtime accept the converted graph: int8 with zero point 0, one scale for each output
channel of a kernel, one scale for each activation tensor, biases in float32.

**A merged kernel stays one tensor.** The int8 values and scales of a kernel depend only on its float32 values, so every
model that shares the kernel gets the same values. The BatchNorm behind a merged float32 kernel is not folded into the
kernel: :mod:`gemel.compiler.passes.batch_norm` writes it as a depthwise 1x1 convolution. In int8, each model multiplies
the BatchNorm factors into its own scales, and the convolution is removed. With int8 values ``q``, scale ``s`` and
BatchNorm factor ``gamma``, ``(s * q) * gamma`` is ``(s * gamma) * q``. The int8 values stay shared, and the layer costs
no more than one with a folded BatchNorm. TensorRT requires scales above 0, so the convolution stays if one of the
BatchNorm's factors is 0 or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..compiler.passes.edit import constant, replace_constant
from .layers import QuantizableLayer, quantizable_layers

__all__ = ["int8_kernel", "observed", "quantize"]

_STEPS = 127
"""Largest int8 value to use; the range is symmetric, from -127 to 127."""
_DEAD = 1e-30
"""Largest absolute value up to which a kernel's output channel is treated as all zeros.

A 127th of a smaller value, or its product with a BatchNorm factor, may not be a normal float32 number.
"""
_MOVES = frozenset({"Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that only move or select numbers of their first input.

The output of such an operator is quantized with the scale of its input, so numbers that are quantized already do not
change.
"""
_ZERO_POINT = "zero.int8"
"""Name of the initializer that all quantized activations use as zero point."""


def observed(model: ir.Model) -> list[str]:
    """Return the names of all activations whose ranges :func:`quantize` may need, whichever layers stay float32."""
    names: dict[str, None] = {}
    for layer in quantizable_layers(model):
        for part in (layer, layer.norm) if layer.norm is not None else (layer,):
            names |= dict.fromkeys(str(_origin(value).name) for value in (part.taken, part.result))
    return list(names)


def quantize(model: ir.Model, peaks: Mapping[str, float], keep: Set[str] = frozenset()) -> None:
    """Quantize the convolutions and matrix products of a graph to int8, in place.

    Args:
        model: float32 graph of one stage of a model, after all graph passes of the compiler.
        peaks: name of each value in :func:`observed` -> its largest absolute value, above 0.
        keep: names of layers that stay float32.
    """
    graph = model.graph
    layers: list[QuantizableLayer] = []
    factors: dict[ir.Node, NDArray[np.float32]] = {}
    for layer in quantizable_layers(model):
        if layer.name in keep:
            continue
        layers.append(layer)
        norm = layer.norm
        if norm is not None and (constant(norm.kernel) > 0).all():
            factors[layer.node] = constant(norm.kernel).reshape(-1)
            _absorb(graph, layer, norm)
        elif norm is not None:
            layers.append(norm)
    # Look up the origin of every value now: QuantizeLinear and DequantizeLinear nodes hide where values come from.
    for value, peak in [(value, peaks[str(_origin(value).name)]) for value in _rounded(layers)]:
        _round(graph, value, peak)
    kernels: dict[str, NDArray[np.int8]] = {}
    for layer in layers:
        kernel = layer.kernel
        kernels[layer.name], scale = int8_kernel(constant(kernel), layer.axis)
        _dequantize_kernel(graph, layer, scale * factors.get(layer.node, np.float32(1)))
    for name, values in kernels.items():
        replace_constant(graph.initializers[name], values)


def int8_kernel(kernel: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a kernel to integers from -127 to 127, with one scale for each output channel.

    The scale of a channel is the channel's largest absolute value divided by 127.

    Args:
        kernel: float32 values, of any shape.
        axis: index of the kernel's axis that counts the C output channels.

    Returns:
        The integers, in the kernel's shape, and the scales, ``[C]`` float32.
    """
    others = tuple(index for index in range(kernel.ndim) if index != axis)
    largest = np.abs(kernel).max(others).astype(np.float64)
    # A channel of zeros may have any scale. So may a channel whose weights weight decay has brought close to 0.
    scale = (np.where(largest > _DEAD, largest, 1.0) / _STEPS).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
    values = np.rint(kernel.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(values, -_STEPS, _STEPS).astype(np.int8), scale


def _origin(value: ir.Value) -> ir.Value:
    """Follow a value of a graph back through operators that only move or select numbers, and return the value that they
    start from."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _absorb(graph: ir.Graph, layer: QuantizableLayer, norm: QuantizableLayer) -> None:
    """Remove the depthwise convolution that holds a layer's BatchNorm, and give the convolution's bias to the layer.

    The caller must multiply the BatchNorm's factors into the scales of the layer's kernel.
    """
    output, target = layer.node.outputs[0], norm.node.outputs[0]
    name = target.name
    layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, norm.node.inputs[2])
    weight = norm.kernel
    ir.convenience.replace_all_uses_with(target, output, replace_graph_outputs=True)
    graph.remove(norm.node, safe=True)
    target.name, output.name = f"{name}.normalized", name
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def _rounded(layers: Sequence[QuantizableLayer]) -> Iterator[ir.Value]:
    """Return the activations of a graph to quantize: inputs of the given layers, and outputs of these layers that other
    nodes read."""
    values: dict[ir.Value, None] = {}
    for layer in layers:
        values[layer.taken] = None
        if layer.result.uses():
            values[layer.result] = None
    return iter(values)


def _round(graph: ir.Graph, value: ir.Value, peak: float) -> None:
    """Insert QuantizeLinear and DequantizeLinear between a value of a graph and all nodes that read the value."""
    readers = tuple(value.uses())
    scale = _initializer(graph, f"{value.name}.scale", np.array(peak / _STEPS, np.float32))
    zero = graph.initializers.get(_ZERO_POINT) or _initializer(graph, _ZERO_POINT, np.array(0, np.int8))
    down = ir.node("QuantizeLinear", [value, scale, zero])
    up = ir.node("DequantizeLinear", [down.outputs[0], scale, zero])
    down.outputs[0].name, up.outputs[0].name = f"{value.name}.int8", f"{value.name}.rounded"
    down.outputs[0].shape, down.outputs[0].dtype = value.shape, ir.DataType.INT8
    up.outputs[0].shape, up.outputs[0].type = value.shape, value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [down, up])
    else:
        graph.insert_after(producer, [down, up])
    for use in readers:
        use.node.replace_input_with(use.idx, up.outputs[0])


def _dequantize_kernel(graph: ir.Graph, layer: QuantizableLayer, scale: NDArray[np.float32]) -> None:
    """Insert DequantizeLinear between a layer's kernel, whose values are still float32, and the layer."""
    kernel = layer.kernel
    name = f"{kernel.name}.{layer.node.outputs[0].name}"
    up = ir.node(
        "DequantizeLinear",
        [kernel, _initializer(graph, f"{name}.scale", scale)],
        attributes={"axis": layer.axis},
    )
    up.outputs[0].name, up.outputs[0].shape, up.outputs[0].dtype = f"{name}.float", kernel.shape, ir.DataType.FLOAT
    graph.insert_before(layer.node, up)
    layer.node.replace_input_with(1, up.outputs[0])


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add an initializer with the values of an array to a graph, and return the initializer."""
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value
