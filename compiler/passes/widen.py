"""Graph pass that converts float16 and bfloat16 graphs to float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import constant, replace_constant

__all__ = ["WidenFloats"]

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TYPES = ("to", "dtype", "output_dtype")
"""Names of ONNX node attributes that hold an element type."""


class WidenFloats(ir.passes.InPlacePass):
    """Graph pass that converts a float16 or bfloat16 graph to float32.

    Every weight keeps its value; results of a run are rounded less.

    A bundle's other precisions start from float32, CPUs compute in float32 anyway, and a kernel can only be shared
    with other models if it has their element type.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, changed = model.graph, False
        for value in graph.initializers.values():
            if value.dtype in _NARROW and value.const_value is not None:
                replace_constant(value, constant(value).astype(np.float32))
                changed = True
        for node in graph:
            changed |= _widen_attributes(node)
            for output in node.outputs:
                if output.dtype in _NARROW:
                    output.dtype = ir.DataType.FLOAT
                    changed = True
        return ir.passes.PassResult(model, changed)


def _widen_attributes(node: ir.Node) -> bool:
    """Convert element types and tensors in a node's attributes from fp16 or bf16 to float32; return whether any was."""
    changed = False
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
            values = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(values))
            changed = True
        elif name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _NARROW:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
            changed = True
    return changed
