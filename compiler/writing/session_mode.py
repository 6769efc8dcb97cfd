"""Choice of how a model holds its weights while it runs: as inputs of a shared program, or as constants of its own."""

from __future__ import annotations

from typing import Literal

from ..lowering.lower import Lowered

__all__ = ["session_mode"]

_PACKING = (
    *("LSTM", "GRU", "RNN", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QuantizeLinear", "DequantizeLinear"),
    *("QLinear", "QGemm", "QAttention"),
)
"""Beginnings of the names of ONNX operators that re-lay (pack) constant weights and are slow with weights as inputs.

With weights as inputs, recurrent models took 1.21 and dynamically quantized ones 1.52 of a plain session's time.
QuantizeLinear and DequantizeLinear become such operators when ONNX Runtime optimises a graph."""


def session_mode(model: Lowered) -> Literal["bound", "constant"]:
    """Return how a model holds its weights while it runs: ``bound`` (inputs of the program) or ``constant``.

    ``constant`` if the model has recurrent or quantized layers of its own, or if most of its weights are matrices of
    matrix products (transformers). ONNX Runtime's matrix products pack constant matrices, but not matrices that are
    inputs. A ViT takes 1.08 to 1.10 of a plain session's time with weights as inputs, and 1.01 with weights as
    constants.

    Args:
        model: model after all passes. For a model that gemel itself converted to int8, the device decides.
    """
    graphs = [stage.graph for stage in model.stages.values()]
    if model.precision != "int8" and any(node.op_type.startswith(_PACKING) for graph in graphs for node in graph):
        return "constant"
    products = total = 0
    for value in (value for graph in graphs for value in graph.initializers.values()):
        size = value.const_value.nbytes if value.const_value is not None else 0
        total += size
        if any(use.node.op_type in ("MatMul", "Transpose") for use in value.uses()):
            products += size
    return "constant" if products * 2 > total else "bound"
