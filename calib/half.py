"""FP16: weights and arithmetic in float16, by onnxruntime.transformers.float16."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from .quantize import layers_of

__all__ = ["halve"]


def halve(model: ir.Model, keep: Set[str] = frozenset()) -> ir.Model:
    """A graph in float16, whose inputs and outputs stay float32.

    A weight's float16 value follows from its float32 value alone, so what models share they go on sharing.

    Args:
        model: a stage in float32, passes done; not changed.
        keep: names of weights that stay float32: layers with the BatchNorms that they keep apart, and others with the
            node that reads them.
    """
    source = model.clone()
    for index, node in enumerate(source.graph):
        node.name = f"n{index}"
    kept = [layer for layer in layers_of(source) if layer.name in keep]
    nodes = [layer.norm.node for layer in kept if layer.norm is not None]
    nodes += [use.node for name in keep for use in source.graph.initializers[name].uses()]
    proto = ir.to_proto(source)
    # With a type of their own, weights of what stays float32 are said to be float16, and would be cast.
    weights = {tensor.name for tensor in proto.graph.initializer}
    _keep(proto.graph.value_info, [value for value in proto.graph.value_info if value.name not in weights])
    proto = convert_float_to_float16(proto, keep_io_types=True, node_block_list=[node.name for node in nodes])
    # What several nodes in float32 read is cast for each of them, under one name.
    _keep(proto.graph.node, {node.output[0]: node for node in proto.graph.node}.values())
    _keep(proto.graph.value_info, {value.name: value for value in proto.graph.value_info}.values())
    made: ir.Model = ir.from_proto(proto)
    made.graph.sort()
    return made


def _keep(messages: Any, kept: Iterable[Any]) -> None:
    """Take all others out of a list of protobuf messages."""
    copies = [type(message).FromString(message.SerializeToString()) for message in kept]
    del messages[:]
    messages.extend(copies)
