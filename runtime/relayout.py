"""Layouts that kernels like when a weight is an input and cannot be packed beforehand."""

from __future__ import annotations

from collections import Counter

from .onnx_wire import Message

__all__ = ["transpose_products"]


def transpose_products(model: Message) -> set[str]:
    """Give products of a vector with a weight the weight as ``[in, out]`` instead of PyTorch's ``[out, in]``.

    ONNX Runtime packs a transposed constant once; a transposed input it would pack in every run, while it streams
    through one that is not transposed (MobileNetV3's classifier: 4 % of the model's time).

    Args:
        model: a ModelProto, edited in place: attribute ``transB`` and the dimensions of initializers. Their values,
            which may lie elsewhere, are for the caller to transpose.

    Returns:
        Names of the initializers whose dimensions were swapped.
    """
    graph = model.graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    uses = Counter(name for node in graph.node for name in node.input)
    swapped: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("Gemm", "FusedGemm") or len(node.input) < 2:
            continue
        flag = next((attribute for attribute in node.attribute if attribute.name == "transB"), None)
        weight = node.input[1]
        if flag is None or not flag.i or weight not in matrices or uses[weight] != 1:
            continue
        flag.i = 0
        dims = matrices[weight].dims
        dims[0], dims[1] = dims[1], dims[0]
        swapped.add(weight)
    return swapped
