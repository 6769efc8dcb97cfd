"""Search of a graph for layers that can be quantized: convolutions and matrix products with a constant kernel."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["QuantizableLayer", "quantizable_layers"]

_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operators that runtimes fuse into the layer before them, so that only the operator's output is quantized."""
_IDENTITY_SETTINGS = {"strides": 1, "pads": 0, "dilations": 1}
"""Attribute of a 1x1 convolution -> value with which each output pixel depends only on the input pixel at its
position."""


@dataclass(frozen=True)
class QuantizableLayer:
    """Layer that can be quantized: a convolution or matrix product whose kernel is an initializer."""

    node: ir.Node
    axis: int
    """Index of the axis of a layer's kernel that counts the output channels."""

    @property
    def kernel(self) -> ir.Value:
        """Initializer of the graph that holds the kernel of a layer that can be quantized."""
        kernel = self.node.inputs[1]
        assert kernel is not None  # _channel_axis lets no other node pass
        return kernel

    @property
    def name(self) -> str:
        """Name of a layer's kernel; layers of one model with the same kernel have the same name."""
        return str(self.kernel.name)

    @property
    def taken(self) -> ir.Value:
        """Activation that a convolution or matrix product reads as its input."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def result(self) -> ir.Value:
        """Output of a layer together with the Relu or Clip that runtimes fuse into the layer.

        A Relu or Clip is fused if no other node reads the layer's own output.
        """
        reader = _only_reader(self.node.outputs[0])
        return reader.outputs[0] if reader is not None and reader.op_type in _ACTIVATIONS else self.node.outputs[0]

    @property
    def norm(self) -> QuantizableLayer | None:
        """Depthwise 1x1 convolution behind a layer that holds a BatchNorm not folded into the layer's kernel.

        None if there is no such convolution, or if the layer has a bias.
        """
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
            and all({*reader.attributes.get_ints(name, ())} <= {value} for name, value in _IDENTITY_SETTINGS.items())
        )
        return QuantizableLayer(reader, 0) if apart else None


def quantizable_layers(model: ir.Model) -> list[QuantizableLayer]:
    """Return the layers of a graph that can be quantized to int8, in the order in which they run.

    A depthwise convolution that holds a layer's BatchNorm is not listed; see :attr:`QuantizableLayer.norm`.
    """
    found = [QuantizableLayer(node, axis) for node in model.graph if (axis := _channel_axis(node)) is not None]
    axis_of = {layer.node: layer.axis for layer in found}
    norms = {layer.norm.node for layer in found if layer.norm is not None}
    return [
        layer
        for layer in found
        # A kernel that another kind of node reads, or that is read along another axis, would be stored twice.
        if layer.node not in norms
        and all(use.idx == 1 and axis_of.get(use.node) == layer.axis for use in layer.kernel.uses())
    ]


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads a value of a graph, if the value is the node's first input.

    None if no node or more than one reads the value, or if the value is an output of the graph.
    """
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def _channel_axis(node: ir.Node) -> int | None:
    """Return the output channel axis of a node's kernel; None if the node cannot be quantized."""
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
