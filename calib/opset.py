"""Conversion of graphs with old ONNX operators to operator version 13, which has per-channel scales."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from ..errors import CompileError, first_line

__all__ = ["raised"]

_LEAST = 13
"""Minimum version of the ONNX operators (opset): the first whose DequantizeLinear has a scale for each channel."""


def raised(model: ir.Model) -> ir.Model:
    """Return a graph with its ONNX operators converted to version 13; unchanged if they have version 13 or newer.

    Raises:
        CompileError: an operator cannot be converted.
    """
    version = model.opset_imports.get("") or _LEAST
    if version >= _LEAST:
        return model
    proto = ir.to_proto(model)
    # Before version 4 of the file format, every weight had to be listed as a graph input too.
    proto.ir_version = max(proto.ir_version, 10)
    try:
        made: ir.Model = ir.from_proto(version_converter.convert_version(proto, _LEAST))
    except (RuntimeError, version_converter.ConvertError) as error:
        raise CompileError(
            f"model {model.graph.name}: int8 and fp16 need operators of version {_LEAST}, it has {version}, and they"
            f" cannot be converted: {first_line(error)}; give the query precision: fp32"
        ) from error
    made.graph.name = model.graph.name
    return made
