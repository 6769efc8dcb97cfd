"""Edits of ONNX graphs that conversions to another precision have in common."""

from __future__ import annotations

from ...bundles.onnx_wire import Message

__all__ = ["attribute_int", "copy_without_types", "drop_unread", "replace_nodes"]


def copy_without_types(model: Message) -> Message:
    """Return a copy of a ModelProto without the types of intermediate values.

    Conversion changes these types; ONNX Runtime infers them again.
    """
    made = type(model)()
    made.CopyFrom(model)
    made.graph.ClearField("value_info")
    return made


def drop_unread(graph: Message) -> None:
    """Remove the initializers of a graph that no node reads and that are not outputs of the graph."""
    read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def replace_nodes(graph: Message, nodes: list[Message]) -> None:
    """Replace all nodes of a graph by ``nodes``, which may include nodes of the graph itself."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def attribute_int(node: Message, name: str, default: int) -> int:
    """Return the value of an integer attribute of a node; the default if the node does not have it."""
    return int(next((attribute.i for attribute in node.attribute if attribute.name == name), default))
