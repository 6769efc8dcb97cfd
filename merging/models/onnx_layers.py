"""Nodes of an ONNX graph that become PyTorch layers, and where in the file their weights stand."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx_ir as ir

from ...errors import ModelError

__all__ = ["DOMAIN", "LayerNode", "Weight", "is_layer", "layer_of"]

DOMAIN = "gemel"
"""Of operators that :mod:`gemel.merging.models.onnx_convert` teaches onnx2torch."""

_KERNELS = ("Conv", "ConvTranspose", "Linear")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Weight:
    """An initializer or Constant of the file where a layer reads it."""

    tensor: str
    node: str
    """First output of the node that reads it; nodes need not have names."""
    index: int
    """Which input of that node it is."""
    transposed: bool = False
    """``[inputs, outputs]`` in the file, the other way round in the layer."""


@dataclass(frozen=True)
class LayerNode:
    """A node that becomes a layer."""

    name: str
    """onnx2torch's for the module: the node's, with the domain before it."""
    path: str
    """What the module is to be called: as its weight in the file, so that a person finds it there."""
    weights: tuple[Weight, ...]
    """Kernel and bias; of a BatchNorm scale, shift, mean and variance."""
    key: str | None
    """Equal for nodes that are one layer called several times; None where that cannot be told."""


def is_layer(node: ir.Node) -> bool:
    """Whether a node takes its weights from initializers, once :func:`layer_of` has seen it."""
    return node.op_type in (*_KERNELS, *_NORMS)


def layer_of(node: ir.Node, in_file: Set[str]) -> LayerNode | None:
    """A node as a layer, if it is one; matrix products with a constant become ``Linear``.

    Args:
        node: of a graph whose constants are initializers.
        in_file: names of the initializers that the file holds; others were computed since.

    Raises:
        ModelError: the weights of a convolution or of a normalisation are computed, or not float32.
    """
    if node.domain:
        return None
    operator = node.op_type
    if operator in ("Gemm", "MatMul"):
        weights = _to_linear(node)
    elif is_layer(node):
        weights = [_weight(node, index) for index, value in enumerate(node.inputs) if index and value is not None]
    else:
        weights = []
    if not weights:
        return None
    for weight in weights:
        if weight.tensor not in in_file:
            raise _computed(node)
    tensor = weights[0].tensor
    stem = tensor.removesuffix(".weight")
    path = stem if stem != tensor else f"{operator}_{tensor}".replace(".", "_")
    attributes = sorted(map(str, node.attributes.values()))
    tensors = [weight.tensor for weight in weights]
    # BatchNorms are always told apart: those of an untrained model are equal by accident.
    key = f"{node.op_type} {attributes} {tensors}" if node.op_type in _KERNELS else None
    return LayerNode(f"{node.domain}/{node.name}".lstrip("/"), path, tuple(weights), key)


def _weight(node: ir.Node, index: int) -> Weight:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise _computed(node)
    if value.dtype != ir.DataType.FLOAT:
        what = f"operator {node.op_type} ({node.outputs[0].name})"
        raise ModelError(f"{what}: weights of type {value.dtype}; only float32 can be retrained")
    return Weight(value.name or "", node.outputs[0].name or "", index)


def _computed(node: ir.Node) -> ModelError:
    what = f"operator {node.op_type} ({node.outputs[0].name})"
    return ModelError(f"{what}: its weights are computed in the graph, where retraining cannot reach them")


def _to_linear(node: ir.Node) -> list[Weight]:
    """Make a node ``Linear`` if it multiplies with a constant matrix and at most adds a constant vector."""
    image, matrix = node.inputs[:2]
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    scaled = (options.get("alpha", 1.0), options.get("beta", 1.0), options.get("transA", 0)) != (1.0, 1.0, 0)
    if image is None or image.const_value is not None or not _is_weight(matrix, 2) or scaled:
        return []
    assert matrix is not None and matrix.shape is not None
    transposed = not options.get("transB", 0)
    outputs = matrix.shape[1 if transposed else 0]
    weight = _weight(node, 1)
    weights = [Weight(weight.tensor, weight.node, 1, transposed)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if not _is_weight(bias, 1) or list(bias.shape or ()) != [outputs]:
            return []
        weights.append(_weight(node, 2))
    elif node.op_type == "MatMul" and (added := _added(node, outputs)) is not None:
        add, index = added
        weights.append(_weight(add, index))
        bias = add.inputs[index]
        ir.convenience.replace_all_uses_with(add.outputs[0], node.outputs[0], replace_graph_outputs=True)
        assert add.graph is not None
        add.graph.remove(add, safe=True)
    node.domain, node.op_type = DOMAIN, "Linear"
    node.attributes.clear()
    node.attributes["transposed"] = ir.AttrInt64("transposed", int(transposed))
    node.resize_inputs(len(weights) + 1)
    if bias is not None:
        node.replace_input_with(2, bias)
    return weights


def _added(node: ir.Node, outputs: object) -> tuple[ir.Node, int] | None:
    """The Add that alone reads a product and adds a vector to it, and which of its inputs the vector is."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    vector = add.inputs[index]
    fits = vector is not None and _is_weight(vector, 1) and list(vector.shape or ()) == [outputs]
    return (add, index) if fits else None


def _is_weight(value: ir.Value | None, rank: int) -> bool:
    return value is not None and value.const_value is not None and len(value.shape or ()) == rank
