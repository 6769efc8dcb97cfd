"""Layers of an ONNX file, read from its graph: for files that cannot be converted to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from ...compiler.lowering.onnx_file import open_onnx, weight_names
from ...workload.document.paths import locate
from ...workload.document.schema import Query
from ..layers.layers import Definition, Layer

__all__ = ["layers_in_file"]

_KERNEL = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1} | {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
"""ONNX operator with a kernel -> position of the kernel among the operator's inputs."""
_MATRIX = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})
_NORMS = frozenset({"BatchNormalization"})
_PASSING = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape"})
"""ONNX operators that may stand between a stored kernel and the layer that reads the kernel."""


def layers_in_file(model: str, query: Query, root: Path, definition: Definition) -> tuple[int, tuple[Layer, ...]]:
    """Return the bytes of an ONNX file's weights, and its convolutions and linear layers in the graph's order.

    Layers are defined as those of PyTorch modules, so that both can be compared.

    Args:
        model: name of the model.
        query: a query whose model is an ONNX file.
        root: folder that relative paths start from.
        definition: what must be equal for two layers to be able to share.

    Raises:
        ModelError: the file is missing or no ONNX file.
    """
    assert query.model.onnx is not None
    graph = open_onnx(locate(query.model.onnx, root, f"query {query.name}: onnx"))
    weights = weight_names(graph)
    heads = set(_last_layers(graph.graph))
    found: dict[str, Layer] = {}
    for node in graph.graph:
        kernel = _kernel(node)
        if kernel is None or kernel.name not in weights or kernel.const_value is None:
            continue
        name = (kernel.name or "").removesuffix(".weight")
        shape = tuple(kernel.const_value.shape.numpy())
        definition_of = _strict if definition == "strict" else _shape
        found.setdefault(
            name,
            Layer(
                model, name, definition_of(node, shape), _stored(node, shape), kernel.const_value.nbytes, node in heads
            ),
        )
    values = (value.const_value for value in graph.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None), tuple(found.values())


def _kernel(node: ir.Node) -> ir.Value | None:
    """Return the stored kernel of an ONNX node that is a layer; None for another node, or if the kernel is computed."""
    if node.domain or node.op_type not in _KERNEL or len(node.inputs) <= _KERNEL[node.op_type]:
        return None
    value = node.inputs[_KERNEL[node.op_type]]
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if producer.op_type in _PASSING else None
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    rank = len(value.const_value.shape)
    return value if (rank == 2 if node.op_type in _MATRIX else rank >= 3) else None


def _stored(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a kernel has as a PyTorch layer's weight: ``[outputs, inputs]`` for a matrix."""
    return shape[::-1] if node.op_type in _MATRIX and not _is_transposed(node) else shape


def _shape(node: ir.Node, shape: tuple[int, ...]) -> str:
    """Return the definition of an ONNX node as a layer, by type, weight shape and groups."""
    sizes = "x".join(map(str, _stored(node, shape)))
    if node.op_type in _MATRIX:
        return f"{'Linear' if _is_transposed(node) else 'TransposedLinear'} {sizes}"
    kind = "ConvTranspose" if node.op_type == "ConvTranspose" else "Conv"
    group = node.attributes.get("group")
    groups = group.as_int() if group is not None else 1
    return f"{kind}{len(shape) - 2}d {sizes}" + (f" groups {groups}" if groups > 1 else "")


def _strict(node: ir.Node, shape: tuple[int, ...]) -> str:
    """Return the definition of an ONNX layer by all its attributes; no layer of a PyTorch module has an equal one."""
    attributes = " ".join(sorted(f"{name}={value.value}" for name, value in node.attributes.items()))
    return f"{_shape(node, shape)} {attributes}".strip()


def _is_transposed(node: ir.Node) -> bool:
    """Return whether an ONNX node stores its matrix as ``[outputs, inputs]``, as PyTorch does."""
    transposed = node.attributes.get("transB")
    return node.op_type == "Gemm" and transposed is not None and transposed.as_int() == 1


def _last_layers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the layers that give an ONNX graph's outputs, with no other layer or BatchNorm in between."""
    pending, seen = [output.producer() for output in graph.outputs], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _kernel(node) is not None:
            yield node
        elif node.op_type not in _NORMS:
            pending.extend(value.producer() for value in node.inputs if value is not None)
