"""ONNX graphs brought into the form from which onnx2torch makes ordinary layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass, ShapeInferencePass

from ...compiler.lowering.onnx_source import OnnxSource
from ...compiler.passes import FoldConstants
from ...compiler.passes.edit import constant, replace_constant
from ...errors import ModelError, first_line
from .onnx_layers import DOMAIN, LayerNode, is_layer, layer_of

__all__ = ["prepare_graph"]

_OLDEST, _NEWEST = 9, 17
"""Opsets whose operators onnx2torch knows."""


def prepare_graph(source: OnnxSource) -> tuple[onnx.ModelProto, list[LayerNode]]:
    """Rewrite a graph for onnx2torch; the outputs keep their order and lose their names.

    Args:
        source: its model is used up.

    Raises:
        ModelError: the weights of a layer are computed, or not float32.
    """
    model = source.model
    ir.external_data.load_to_model(model)
    version = model.opset_imports.get("", _OLDEST)
    if version < _OLDEST:
        model = _renewed(model)
    graph = model.graph
    lift = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    lift(model)
    in_file = frozenset(graph.initializers)
    # Only what reaches an output, and of that only what is not the same for every image.
    ir.passes.Sequential(FoldConstants(source.weights), lift, RemoveUnusedNodesPass())(model)
    # Later versions of most operators only add types and options. Where one means something else after what is done
    # here, it shows when the outputs are compared.
    model.opset_imports.update({"": min(max(version, _OLDEST), _NEWEST), DOMAIN: 1})
    for node in list(graph):
        _as_known(node, version)
    _free_batch(graph)
    layers = []
    for index, node in enumerate(list(graph)):
        if node.graph is None:
            continue  # an Add that became a bias
        node.name = f"{node.op_type}_{index}"
        layer = layer_of(node, in_file)
        if layer is not None:
            layers.append(layer)
    _apart(graph)
    return ir.to_proto(model), layers


def _renewed(model: ir.Model) -> ir.Model:
    try:
        model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), _OLDEST))
    except RuntimeError as error:
        raise ModelError(f"opset {model.opset_imports.get('')}: {first_line(error)}") from error
    ShapeInferencePass()(model)
    return model


def _as_known(node: ir.Node, version: int) -> None:
    """Write a node as onnx2torch knows it."""
    first, second = (*node.inputs[:2], None, None)[:2]
    if node.op_type == "Identity" and first is not None and first.is_initializer():
        # Exporters write equal initializers once, and an Identity for every other use.
        ir.convenience.replace_all_uses_with(node.outputs[0], first, replace_graph_outputs=True)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    elif node.op_type == "Gelu":
        node.domain = DOMAIN
    elif node.op_type == "Reshape":
        node.attributes.pop("allowzero", None)  # no size is 0
    elif node.op_type == "Split":
        node.attributes.pop("num_outputs", None)  # equal parts, as without it
    elif (
        version > _NEWEST
        and node.op_type.startswith("Reduce")
        and node.op_type != "ReduceSum"
        and second is not None
        and second.const_value is not None
    ):
        node.attributes["axes"] = ir.AttrInt64s("axes", constant(second).tolist())
        node.resize_inputs(1)


def _free_batch(graph: ir.Graph) -> None:
    """Let a file that was exported for one image take any number: Reshapes to ``[1, ...]`` keep the first size."""
    images = set(graph.inputs)
    for node in graph:
        if node.op_type in ("Shape", "Size") or not images.intersection(node.inputs):
            continue
        images.update(node.outputs)
        shape = node.inputs[1] if node.op_type == "Reshape" else None
        if shape is not None and shape.const_value is not None:
            sizes = constant(shape)
            if len(sizes) > 1 and sizes[0] == 1:
                node.replace_input_with(1, _new(graph, f"{node.outputs[0].name}:shape", np.array([0, *sizes[1:]])))


def _apart(graph: ir.Graph) -> None:
    """Leave as initializers only what layers take; other constants, and outputs, become nodes of their own.

    onnx2torch keeps other initializers as buffers of the module itself, which copying it makes part of its state, and
    it returns nodes, not values.
    """
    lifted: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or (index and is_layer(node)):
                continue
            if value not in lifted:
                name = f"constant_{len(lifted)}"
                holder = ir.node("Constant", [], attributes={"value": value.const_value}, name=name)
                holder.outputs[0].name = f"{value.name}:constant"
                holder.outputs[0].type, holder.outputs[0].shape = value.type, value.shape
                graph.insert_before(graph[0], holder)
                lifted[value] = holder.outputs[0]
            node.replace_input_with(index, lifted[value])
    for index, value in enumerate(graph.outputs):
        last = ir.node("Identity", [value], name=f"output_{index}")
        last.outputs[0].name = f"output_{index}"
        last.outputs[0].type, last.outputs[0].shape = value.type, value.shape
        graph.append(last)
        graph.outputs[index] = last.outputs[0]


def _new(graph: ir.Graph, name: str, array: NDArray[np.int64]) -> ir.Value:
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value
