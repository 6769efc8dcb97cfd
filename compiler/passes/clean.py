"""Passes that make an exported graph clean without touching a weight."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants

__all__ = ["CleanUp", "DropInventedBiases", "FoldConstants", "LiftConstants"]


class DropInventedBiases(ir.passes.InPlacePass):
    """Remove the zero biases that the exporter gives to convolutions that have none.

    Requires: a graph from PyTorch's exporter, before constant folding, while such a bias is still computed (Expand of
    a constant) and so can be told from a trained bias that happens to be zero. Decided by provenance, never by value:
    a program must not depend on weights.
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
    """Evaluate what does not depend on the input, except what touches a weight.

    Folding a Transpose or Reshape of a weight would replace it by a nameless copy, and sharing could no longer be
    proved. The device's own optimiser folds those later.

    Args:
        weights: names of initializers that must survive.
    """

    # A position grid or an anchor table may be this large; anything beyond is better computed than stored.
    _LIMIT = 1 << 20

    def __init__(self, weights: Set[str]) -> None:
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        def keeps_weights(node: ir.Node) -> bool | None:
            return False if any(value is not None and value.name in self._weights for value in node.inputs) else None

        result = fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=self._LIMIT,
            output_size_limit=self._LIMIT,
            should_fold=keeps_weights,
        )
        return ir.passes.PassResult(model, bool(result.modified))


class LiftConstants(ir.passes.InPlacePass):
    """Turn Constant nodes of two or more elements into initializers: some exporters write weights that way."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=2)(model)


class CleanUp(ir.passes.InPlacePass):
    """Remove identities, unused nodes and initializers, and notes that name files of the exporting machine."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sequence = ir.passes.Sequential(
            IdentityEliminationPass(), RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()
        )
        return sequence(model)
