"""Passes that clean an ONNX graph without changing a weight."""

from __future__ import annotations

import math
from collections.abc import Set

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants

__all__ = ["CleanUp", "DropInventedBiases", "FoldConstants", "LiftConstants", "may_fold"]

_GROWING = frozenset({"EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
"""ONNX operators whose output may be far larger than their inputs."""


class DropInventedBiases(ir.passes.InPlacePass):
    """Graph pass that removes the zero biases which PyTorch's exporter gives to convolutions without a bias.

    An invented bias is recognised by its producer (Expand of a constant), not by its value: a trained bias may be zero,
    and a program must not depend on weights.

    Requires: a graph from PyTorch's exporter before constant folding, which removes the producer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in model.graph:
            if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3:
                bias = node.inputs[2]
                producer = bias.producer() if bias is not None else None
                if producer is not None and producer.op_type == "Expand":
                    node.resize_inputs(2)
                    changed = True
        return ir.passes.PassResult(model, changed)


class FoldConstants(ir.passes.InPlacePass):
    """Graph pass that evaluates nodes that do not depend on the input, except nodes that read a weight.

    Folding a Transpose or Reshape of a weight would replace the weight by a copy without a name, and sharing could no
    longer be proved. The device's own optimiser folds these nodes later.

    Args:
        weights: names of initializers that must stay.
    """

    _LIMIT = 1 << 20
    """Maximum number of elements of a constant that is folded: enough for a position grid or an anchor table."""

    def __init__(self, weights: Set[str]) -> None:
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        def keeps_weights(node: ir.Node) -> bool | None:
            reads_weight = any(value is not None and value.name in self._weights for value in node.inputs)
            return False if reads_weight or not may_fold(node, self._LIMIT) else None

        result = fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=self._LIMIT,
            output_size_limit=self._LIMIT,
            should_fold=keeps_weights,
        )
        return ir.passes.PassResult(model, bool(result.modified))


def may_fold(node: ir.Node, limit: int) -> bool:
    """Return whether a graph's node with constant inputs can be evaluated without taking much memory.

    Folding compares the size of a result with its limit only after the result was computed.

    Args:
        node: node whose output shapes were inferred as far as possible.
        limit: maximum number of elements of an output.
    """
    for output in node.outputs:
        sizes = [size for size in output.shape or () if isinstance(size, int)]
        if output.shape is None or len(sizes) < len(output.shape):
            return node.op_type not in _GROWING
        if math.prod(sizes) > limit:
            return False
    return True


class LiftConstants(ir.passes.InPlacePass):
    """Graph pass that turns Constant nodes of two or more elements into initializers.

    Some exporters write weights as Constant nodes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=2)(model)


class CleanUp(ir.passes.InPlacePass):
    """Graph pass that removes identities, unused nodes, unused initializers, doc strings and metadata.

    Doc strings and metadata may name files of the exporting machine.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sequence = ir.passes.Sequential(
            IdentityEliminationPass(), RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()
        )
        return sequence(model)
