"""Conversion of graphs to fp16 (weights and arithmetic in float16) with onnxruntime.transformers.float16."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import Any

import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from .layers import quantizable_layers

__all__ = ["fp32_nodes", "to_fp16"]


def to_fp16(model: ir.Model, keep: Set[str] = frozenset(), large: Collection[str] = ()) -> ir.Model:
    """Return a copy of a graph that computes in float16, with inputs and outputs that stay float32.

    A weight's float16 value depends only on its float32 value, so a weight that models share stays shared.

    Args:
        model: float32 graph of one stage of a model, after all graph passes of the compiler; not changed.
        keep: names of weights that stay float32, with all nodes that read them. If a layer's kernel is named, the
            BatchNorm that follows the layer as a convolution of its own stays float32 too.
        large: names of values that float16 cannot hold; nodes that produce or read these values stay float32.
    """
    source = model.clone()
    for index, node in enumerate(source.graph):
        node.name = f"n{index}"
    kept = [layer for layer in quantizable_layers(source) if layer.name in keep]
    nodes = [layer.norm.node for layer in kept if layer.norm is not None]
    nodes += [use.node for name in keep for use in source.graph.initializers[name].uses()]
    nodes += _touching(source, large)
    proto = ir.to_proto(source)
    # ONNX Runtime's converter takes a weight that has a value_info entry for float16, and casts the weight even for
    # readers in float32.
    weights = {tensor.name for tensor in proto.graph.initializer}
    _keep_only(proto.graph.value_info, [value for value in proto.graph.value_info if value.name not in weights])
    proto = convert_float_to_float16(proto, keep_io_types=True, node_block_list=[node.name for node in nodes])
    # The converter casts a value once for each float32 node that reads it, under one name.
    _keep_only(proto.graph.node, {node.output[0]: node for node in proto.graph.node}.values())
    _keep_only(proto.graph.value_info, {value.name: value for value in proto.graph.value_info}.values())
    made: ir.Model = ir.from_proto(proto)
    made.graph.sort()
    _remove_round_trips(made.graph)
    return made


def fp32_nodes(model: ir.Model, large: Collection[str]) -> set[str]:
    """Return the names of the weights that :func:`to_fp16` leaves in float32 because float16 cannot hold some values.

    Args:
        model: float32 graph of one stage of a model.
        large: names of the values that float16 cannot hold. A node that produces or reads one of these values stays
            float32, with its weights.
    """
    inputs = [value for node in _touching(model, large) for value in node.inputs if value is not None]
    return {str(value.name) for value in inputs if value.is_initializer()}


def _touching(model: ir.Model, values: Collection[str]) -> list[ir.Node]:
    """Return the nodes of a graph that produce or read at least one of the values with the given names."""
    wanted = {*values}
    return [
        node
        for node in model.graph
        if wanted and any(value is not None and value.name in wanted for value in (*node.inputs, *node.outputs))
    ]


def _remove_round_trips(graph: ir.Graph) -> None:
    """Remove pairs of Cast nodes that convert a value between two float32 nodes to float16 and back."""
    for node in list(graph):
        to_float16 = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if to_float16 is None or to_float16.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT:
            continue
        source, target = to_float16.inputs[0], node.outputs[0]
        assert source is not None
        if source.is_graph_input() and target.is_graph_output():
            continue
        name, is_output = target.name, target.is_graph_output()
        ir.convenience.replace_all_uses_with(target, source, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if is_output:
            target.name, source.name = f"{name}.cast", name
        if not to_float16.outputs[0].uses():
            graph.remove(to_float16, safe=True)


def _keep_only(messages: Any, kept: Iterable[Any]) -> None:
    """Replace the content of a list field of a protobuf message by copies of the messages in ``kept``."""
    copies = [type(message).FromString(message.SerializeToString()) for message in kept]
    del messages[:]
    messages.extend(copies)
