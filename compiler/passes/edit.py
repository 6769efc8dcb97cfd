"""Functions that read and replace the arrays of a graph's initializers (constant tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...bundles.blob import tensor_id

__all__ = [
    "add_constant",
    "bypass",
    "constant",
    "constant_id",
    "is_constant",
    "note_gain",
    "noted_gain",
    "own_constant",
    "replace_constant",
]

_ID = "gemel.tensor_id"
"""Key under which a tensor's id is cached in the tensor's metadata in memory, which is not written into files."""
_GAIN = "gemel.gain"
"""Key, in the metadata in memory of a folded kernel, of the factors by which its channels were multiplied."""


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Return whether a value is an initializer (constant tensor) of a graph whose array is known."""
    return value is not None and value.is_initializer() and value.const_value is not None


def constant(value: ir.Value | None) -> NDArray[Any]:
    """Return the array of a graph's initializer (constant tensor).

    Raises:
        ValueError: the value is not an initializer, which is a bug of the caller.
    """
    if value is None or value.const_value is None:
        raise ValueError(f"{value.name if value else None!r} is not an initializer")
    return np.ascontiguousarray(value.const_value.numpy())


def constant_id(value: ir.Value | None) -> str:
    """Return the tensor id of a graph's initializer. The bytes are hashed at the first call and after a replacement.

    Passes never edit the array of an initializer in place: they replace it, see :func:`replace_constant`.

    Raises:
        ValueError: the value is not an initializer, which is a bug of the caller.
    """
    array = constant(value)
    assert value is not None and value.const_value is not None  # constant() refuses other values
    notes = value.const_value.meta
    if _ID not in notes:
        notes[_ID] = tensor_id(array)
    found: str = notes[_ID]
    return found


def replace_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Replace the array of a graph's initializer, and set its dtype and shape to those of the new array."""
    # The reshape keeps a scalar a scalar: ascontiguousarray makes a vector of it.
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
    value.const_value = tensor
    # New type and shape objects: a clone of the graph holds the old ones too.
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initializer to a graph and return it."""
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value


def own_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any]) -> ir.Value:
    """Replace the array of an initializer that a node reads as an input, and return the initializer with the new array.

    If anything else reads the old initializer too, the new array becomes another one with a name of its own.

    Args:
        graph: graph of the node.
        node: node that reads the initializer.
        index: number of the input.
        array: new array.
    """
    value = node.inputs[index]
    assert value is not None  # callers have read the array
    if [(use.node, use.idx) for use in value.uses()] == [(node, index)]:
        replace_constant(value, array)
        return value
    return add_constant(graph, f"{value.name}.{node.outputs[0].name}.{index}", array)


def bypass(graph: ir.Graph, nodes: Sequence[ir.Node], source: ir.Value) -> None:
    """Remove a chain of nodes, and put the value ``source`` in place of the last one's output, with its type and shape.

    If the graph returns this output, ``source`` takes its name.
    """
    target = nodes[-1].outputs[0]
    source.type, source.shape = target.type, target.shape
    if target.is_graph_output():
        source.name, target.name = target.name, f"{target.name}.bypassed"
    ir.convenience.replace_all_uses_with(target, source, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)


def note_gain(value: ir.Value, gain: NDArray[np.float64]) -> None:
    """Note the factors by which the channels of a kernel, its first axis, were just multiplied."""
    assert value.const_value is not None  # the caller has just replaced it
    value.const_value.meta[_GAIN] = gain


def noted_gain(value: ir.Value) -> NDArray[np.float64] | None:
    """Return the factors by which the channels of a kernel were multiplied; None if they were not."""
    return None if value.const_value is None else value.const_value.meta.get(_GAIN)
