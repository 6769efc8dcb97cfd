"""Graph pass that turns scales and shifts behind convolutions into what can be folded into these."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from .edit import add_constant, bypass, constant, is_constant, own_constant

__all__ = ["ScaleToBatchNorm"]


class _Step(NamedTuple):
    """Mul or Add of a constant value per channel, as the only reader of a value."""

    node: ir.Node
    values: ir.Value


class ScaleToBatchNorm(ir.passes.InPlacePass):
    """Graph pass that makes one BatchNorm of the Mul and Add behind a convolution, and its bias of an Add alone.

    Exporters write frozen BatchNorms in this way. ONNX Runtime folds such nodes where all operands are constants, but
    not in programs, whose weights are inputs. As a BatchNorm, they are folded by the next passes, or kept apart if the
    kernel is shared.

    Only convolutions in two dimensions are changed, and constants with one value per channel.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, changed = model.graph, False
        for conv in list(graph):
            if conv.op_type != "Conv" or conv.domain or not _is_kernel(conv.inputs[1]):
                continue
            scale = _next_step(conv, "Mul", conv)
            shift = _next_step(scale.node if scale else conv, "Add", conv)
            if scale is not None:
                self._to_batch_norm(graph, scale, shift)
            elif shift is not None and len(conv.inputs) == 2:
                conv.resize_inputs(3)
                conv.replace_input_with(2, _as_vector(graph, shift))
                bypass(graph, [shift.node], conv.outputs[0])
            else:
                continue
            changed = True
        return ir.passes.PassResult(model, changed)

    def _to_batch_norm(self, graph: ir.Graph, scale: _Step, shift: _Step | None) -> None:
        """Replace a scale, and the shift behind it if there is one, by a BatchNorm with mean 0 and variance 1."""
        gamma = _as_vector(graph, scale)
        zeros = np.zeros_like(constant(gamma))
        name = scale.node.outputs[0].name
        mean, variance = add_constant(graph, f"{name}.mean", zeros), add_constant(graph, f"{name}.var", zeros + 1)
        beta = _as_vector(graph, shift) if shift is not None else add_constant(graph, f"{name}.bias", zeros)
        (image,) = (value for value in scale.node.inputs if value is not scale.values)
        inputs = [image, gamma, beta, mean, variance]
        norm = ir.node("BatchNormalization", inputs, attributes={"epsilon": 0.0}, num_outputs=1)
        graph.insert_before(scale.node, norm)
        bypass(graph, [step.node for step in (scale, shift) if step is not None], norm.outputs[0])


def _is_kernel(value: ir.Value | None) -> bool:
    return is_constant(value) and len(value.shape or ()) == 4


def _next_step(node: ir.Node, kind: str, conv: ir.Node) -> _Step | None:
    """Return the Mul or Add that alone reads a node's output and has a constant value per channel of ``conv``."""
    kernel, output = constant(conv.inputs[1]), node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != kind or uses[0].node.domain:
        return None
    values, shapes = uses[0].node.inputs[1 - uses[0].idx], ((len(kernel), 1, 1), (1, len(kernel), 1, 1))
    if is_constant(values) and constant(values).shape in shapes and constant(values).dtype == kernel.dtype:
        return _Step(uses[0].node, values)
    return None


def _as_vector(graph: ir.Graph, step: _Step) -> ir.Value:
    """Return the initializer with a step's constant as a vector, ``[channels]``."""
    return own_constant(graph, step.node, step.node.inputs.index(step.values), constant(step.values).reshape(-1))
