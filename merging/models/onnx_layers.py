"""Find the nodes of an ONNX graph that become PyTorch layers, and the node inputs that read their weights."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx_ir as ir

from ...errors import ModelError

__all__ = ["DOMAIN", "LayerNode", "Weight", "is_layer", "layer_of"]

DOMAIN = "gemel"
"""ONNX domain of the operators that :mod:`gemel.merging.models.onnx_convert` adds to onnx2torch."""

_KERNELS = ("Conv", "ConvTranspose", "Linear")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Weight:
    """Input of an ONNX node through which a layer reads a weight, which is an initializer or a Constant."""

    tensor: str
    """Name of the initializer or Constant in the ONNX file that is the weight."""
    node: str
    """Name of the first output of the ONNX node that reads the weight; it identifies the node, which may be unnamed."""
    index: int
    """Index, from 0, of the ONNX node's input that is the weight."""
    transposed: bool = False
    """Whether the ONNX file stores the weight as ``[inputs, outputs]``, while the layer has ``[outputs, inputs]``."""


@dataclass(frozen=True)
class LayerNode:
    """ONNX node that becomes a PyTorch layer."""

    name: str
    """Name that onnx2torch gives the PyTorch module: the node's name, preceded by the node's domain if it has one."""
    path: str
    """Dotted path of the converted layer in the PyTorch module, made from the name of the layer's weight in the ONNX
    file, so that a person finds the layer there."""
    weights: tuple[Weight, ...]
    """Node inputs that read the layer's weights: kernel and bias, or a BatchNorm's scale, shift, mean and variance."""
    key: str | None
    """Key that is equal for ONNX nodes that call one layer. It is None for normalisation layers, because two different
    ones may hold equal tensors."""


def is_layer(node: ir.Node) -> bool:
    """Check whether an ONNX node is a layer with weights. :func:`layer_of` must have seen the node before."""
    return node.op_type in (*_KERNELS, *_NORMS)


def layer_of(node: ir.Node, in_file: Set[str]) -> LayerNode | None:
    """Return the layer that an ONNX node becomes, or None; rewrite a matrix product with a constant as ``Linear``.

    Args:
        node: a node of a graph whose constants are initializers.
        in_file: names of the initializers that the file holds; constant folding may have added others to the graph.

    Raises:
        ModelError: the weights of the layer are computed in the graph, or not float32.
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
            raise _computed_error(node)
    tensor = weights[0].tensor
    stem = tensor.removesuffix(".weight")
    path = stem if stem != tensor else f"{operator}_{tensor}".replace(".", "_")
    # PyTorch writes the path into Python code, where a line break or a quote in a name would be a syntax error.
    path = "".join(letter if letter.isprintable() and letter not in "\"'\\" else "_" for letter in path)
    attributes = sorted(map(str, node.attributes.values()))
    tensors = [weight.tensor for weight in weights]
    # BatchNorms always count as different layers: those of an untrained model are equal by accident.
    key = f"{node.op_type} {attributes} {tensors}" if node.op_type in _KERNELS else None
    return LayerNode(f"{node.domain}/{node.name}".lstrip("/"), path, tuple(weights), key)


def _weight(node: ir.Node, index: int) -> Weight:
    """Return input ``index`` of an ONNX node as a weight of the node's layer.

    Raises:
        ModelError: the weight is computed in the graph, or not float32.
    """
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise _computed_error(node)
    if value.dtype != ir.DataType.FLOAT:
        what = f"operator {node.op_type} ({node.outputs[0].name})"
        raise ModelError(f"{what}: weights of type {value.dtype}; only float32 can be retrained")
    return Weight(value.name or "", node.outputs[0].name or "", index)


def _computed_error(node: ir.Node) -> ModelError:
    """Return the error for a layer whose weights are computed in the graph."""
    what = f"operator {node.op_type} ({node.outputs[0].name})"
    return ModelError(f"{what}: its weights are computed in the graph, where retraining cannot reach them")


def _to_linear(node: ir.Node) -> list[Weight]:
    """Rewrite a Gemm or MatMul node of an ONNX graph as ``Linear``, if possible.

    The node must multiply by a constant matrix, and may add a constant vector.

    Returns:
        Node inputs of the matrix and, if there is one, of the constant vector; empty if the node is not rewritten.
    """
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
    elif node.op_type == "MatMul" and (added := _bias_add(node, outputs)) is not None:
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


def _bias_add(node: ir.Node, outputs: object) -> tuple[ir.Node, int] | None:
    """Find the Add node that adds a constant vector to a matrix product and is the product's only reader.

    Args:
        node: node of the matrix product.
        outputs: length that the vector must have.

    Returns:
        The Add node and the index of its input that is the vector; None if there is no such node.
    """
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    vector = add.inputs[index]
    fits = vector is not None and _is_weight(vector, 1) and list(vector.shape or ()) == [outputs]
    return (add, index) if fits else None


def _is_weight(value: ir.Value | None, rank: int) -> bool:
    """Check whether a value of an ONNX graph is a constant with ``rank`` dimensions."""
    return value is not None and value.const_value is not None and len(value.shape or ()) == rank
