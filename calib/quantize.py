"""INT8: symmetric Q/DQ around the layers of a graph, kernels as int8 tensors.

What TensorRT 10 and 11 and ONNX Runtime both take: int8 with zero point 0, one scale an output channel for kernels, one
a tensor for activations, biases in float32.

**A merged kernel stays one tensor.** Its int8 values and their scale follow from its float32 values alone, so every
model that shares it gets the same ones. The BatchNorm that such a kernel keeps apart in float32 (the depthwise 1x1
convolution that :mod:`gemel.compiler.passes.batch_norm` writes) vanishes in each model's scale, as ``(s * q) * gamma``
is ``(s * gamma) * q``: the values stay shared, and the layer costs what a folded one does. TensorRT wants scales above
0, so a BatchNorm with another factor stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..compiler.passes.edit import constant, replace_constant

__all__ = ["QuantizableLayer", "int8_kernel", "observed", "quantizable_layers", "quantize"]

_STEPS = 127
_DEAD = 1e-30
"""A 127th of what is not larger would not be a normal number of float32, or not be one any more times a factor."""
_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Fused into the layer before them: what is rounded is their result."""
_MOVES = frozenset({"Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Their results hold values of their first input: with its scale, rounding these again changes nothing."""
_USUAL = {"strides": 1, "pads": 0, "dilations": 1}
_ZERO = "zero.int8"


@dataclass(frozen=True)
class QuantizableLayer:
    """A convolution or matrix product whose kernel is an initializer."""

    node: ir.Node
    axis: int
    """Of the kernel: output channels."""

    @property
    def kernel(self) -> ir.Value:
        kernel = self.node.inputs[1]
        assert kernel is not None  # _axis lets no other node pass
        return kernel

    @property
    def name(self) -> str:
        """That of its kernel, which layers that share inside a model have in common."""
        return str(self.kernel.name)

    @property
    def taken(self) -> ir.Value:
        """What it is applied to."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def result(self) -> ir.Value:
        """Its output, behind an activation that is fused into it."""
        reader = _only_reader(self.node.outputs[0])
        return reader.outputs[0] if reader is not None and reader.op_type in _ACTIVATIONS else self.node.outputs[0]

    @property
    def norm(self) -> QuantizableLayer | None:
        """The BatchNorm that it keeps apart, if it has no bias of its own."""
        reader = _only_reader(self.node.outputs[0])
        if self.node.op_type != "Conv" or len(self.node.inputs) > 2 or reader is None or reader.op_type != "Conv":
            return None
        channels = self.kernel.shape[0] if self.kernel.shape else 0
        weights = reader.inputs[1:]
        apart = (
            len(weights) == 2
            and all(weight is not None and weight.is_initializer() for weight in weights)
            and list(QuantizableLayer(reader, 0).kernel.shape or ()) == [channels, 1, 1, 1]
            and reader.attributes.get_int("group", 1) == channels
            and all({*reader.attributes.get_ints(name, ())} <= {usual} for name, usual in _USUAL.items())
        )
        return QuantizableLayer(reader, 0) if apart else None


def quantizable_layers(model: ir.Model) -> list[QuantizableLayer]:
    """The layers that can be int8, in the order in which they run; BatchNorms that they keep apart are no layers."""
    found = [QuantizableLayer(node, axis) for node in model.graph if (axis := _axis(node)) is not None]
    axis_of = {layer.node: layer.axis for layer in found}
    norms = {layer.norm.node for layer in found if layer.norm is not None}
    return [
        layer
        for layer in found
        # A kernel that something else reads, or reads along another axis, would have to be there twice.
        if layer.node not in norms
        and all(use.idx == 1 and axis_of.get(use.node) == layer.axis for use in layer.kernel.uses())
    ]


def observed(model: ir.Model) -> list[str]:
    """Names of the values whose ranges :func:`quantize` needs, whichever layers it is to leave alone."""
    names: dict[str, None] = {}
    for layer in quantizable_layers(model):
        for part in (layer, layer.norm) if layer.norm is not None else (layer,):
            names |= dict.fromkeys(str(_origin(value).name) for value in (part.taken, part.result))
    return list(names)


def quantize(model: ir.Model, peaks: Mapping[str, float], keep: Set[str] = frozenset()) -> None:
    """Make the layers of a graph int8, in place.

    Args:
        model: a stage, passes done.
        peaks: largest absolute value of every value in :func:`observed`, above 0.
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
    # Where values come from is asked before anything is put in between.
    for value, peak in [(value, peaks[str(_origin(value).name)]) for value in _rounded(layers)]:
        _round(graph, value, peak)
    kernels: dict[str, NDArray[np.int8]] = {}
    for layer in layers:
        kernel = layer.kernel
        kernels[layer.name], scale = int8_kernel(constant(kernel), layer.axis)
        _read_int8(graph, layer, scale * factors.get(layer.node, np.float32(1)))
    for name, values in kernels.items():
        replace_constant(graph.initializers[name], values)


def int8_kernel(kernel: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A kernel as integers from -127 to 127 and a scale for each output channel, by its largest absolute value.

    Args:
        kernel: of any shape.
        axis: of output channels, of which there are C.

    Returns:
        Values of the same shape, and ``[C]`` float32.
    """
    others = tuple(index for index in range(kernel.ndim) if index != axis)
    largest = np.abs(kernel).max(others).astype(np.float64)
    # A channel of zeros has any scale; so has one that weight decay has left next to nothing of.
    scale = (np.where(largest > _DEAD, largest, 1.0) / _STEPS).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
    values = np.rint(kernel.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(values, -_STEPS, _STEPS).astype(np.int8), scale


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, as its first input, if nothing else does."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def _axis(node: ir.Node) -> int | None:
    """The axis of a kernel's output channels; None for other nodes."""
    kernel = node.inputs[1] if len(node.inputs) > 1 else None
    if node.domain or kernel is None or not kernel.is_initializer() or kernel.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1:
        return 1
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 0:
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "MatMul" and len(kernel.shape or ()) == 2:
        return 1
    return None


def _origin(value: ir.Value) -> ir.Value:
    """Where the numbers of a value come from, if it only moves them."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _absorb(graph: ir.Graph, layer: QuantizableLayer, norm: QuantizableLayer) -> None:
    """Let a layer do what the BatchNorm behind it does, but for the factors; these become part of its scale."""
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
    """Values that are rounded: what layers take, and what they give, but for what only leaves the graph."""
    values: dict[ir.Value, None] = {}
    for layer in layers:
        values[layer.taken] = None
        if layer.result.uses():
            values[layer.result] = None
    return iter(values)


def _round(graph: ir.Graph, value: ir.Value, peak: float) -> None:
    """Put QuantizeLinear and DequantizeLinear between a value and all that read it."""
    readers = tuple(value.uses())
    scale = _initializer(graph, f"{value.name}.scale", np.array(peak / _STEPS, np.float32))
    zero = graph.initializers.get(_ZERO) or _initializer(graph, _ZERO, np.array(0, np.int8))
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


def _read_int8(graph: ir.Graph, layer: QuantizableLayer, scale: NDArray[np.float32]) -> None:
    """Put DequantizeLinear between a kernel, whose values are still float32, and a layer."""
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
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value
