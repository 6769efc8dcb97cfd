"""Graph pass that turns scales and shifts behind convolutions into what can be folded into these."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .edit import constant, replace_constant

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
                _end_with(graph, conv, [shift])
            changed = changed or scale is not None or shift is not None
        return ir.passes.PassResult(model, changed)

    def _to_batch_norm(self, graph: ir.Graph, scale: _Step, shift: _Step | None) -> None:
        """Replace a scale, and the shift behind it if there is one, by a BatchNorm with mean 0 and variance 1."""
        gamma = _as_vector(graph, scale)
        zeros = np.zeros_like(constant(gamma))
        name = scale.node.outputs[0].name
        mean, variance = (_added(graph, f"{name}.{part}", zeros + value) for part, value in (("mean", 0), ("var", 1)))
        beta = _as_vector(graph, shift) if shift is not None else _added(graph, f"{name}.bias", zeros)
        (image,) = (value for value in scale.node.inputs if value is not scale.values)
        inputs = [image, gamma, beta, mean, variance]
        norm = ir.node("BatchNormalization", inputs, attributes={"epsilon": 0.0}, num_outputs=1)
        graph.insert_before(scale.node, norm)
        _end_with(graph, norm, [step for step in (scale, shift) if step is not None])


def _is_kernel(value: ir.Value | None) -> bool:
    return _is_constant(value) and value is not None and len(value.shape or ()) == 4


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None


def _next_step(node: ir.Node, kind: str, conv: ir.Node) -> _Step | None:
    """Return the Mul or Add that alone reads a node's output and has a constant value per channel of ``conv``."""
    output, kernel = node.outputs[0], constant(conv.inputs[1])
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != kind or uses[0].node.domain:
        return None
    values = uses[0].node.inputs[1 - uses[0].idx]
    if not _is_constant(values):
        return None
    array, channels = constant(values), len(kernel)
    fits = array.shape in ((channels, 1, 1), (1, channels, 1, 1)) and array.dtype == kernel.dtype
    return _Step(uses[0].node, values) if fits and values is not None else None


def _as_vector(graph: ir.Graph, step: _Step) -> ir.Value:
    """Return the initializer with a step's constant as a vector, ``[channels]``.

    If another node reads the constant too, the vector becomes another one with a name of its own.
    """
    array = constant(step.values).reshape(-1)
    if len(step.values.uses()) == 1:
        replace_constant(step.values, array)
        return step.values
    return _added(graph, f"{step.values.name}.{step.node.outputs[0].name}", array)


def _added(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value


def _end_with(graph: ir.Graph, node: ir.Node, steps: list[_Step]) -> None:
    """Put a node's output in place of that of the last step, and remove the steps."""
    source, target = node.outputs[0], steps[-1].node.outputs[0]
    source.type, source.shape = target.type, target.shape
    if target.is_graph_output():
        source.name, target.name = target.name, f"{target.name}.unscaled"
    ir.convenience.replace_all_uses_with(target, source, replace_graph_outputs=True)
    graph.remove([step.node for step in steps], safe=True)
