"""Functions that read and replace the arrays of a graph's initializers (constant tensors)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...bundles.blob import tensor_id

__all__ = ["constant", "constant_id", "note_gain", "noted_gain", "replace_constant"]

_ID = "gemel.tensor_id"
"""Key under which a tensor's id is cached in the tensor's metadata in memory, which is not written into files."""
_GAIN = "gemel.gain"
"""Key, in the metadata in memory of a folded kernel, of the factors by which its channels were multiplied."""


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


def note_gain(value: ir.Value, gain: NDArray[np.float64]) -> None:
    """Note the factors by which the channels of a kernel, its first axis, were just multiplied."""
    assert value.const_value is not None  # the caller has just replaced it
    value.const_value.meta[_GAIN] = gain


def noted_gain(value: ir.Value) -> NDArray[np.float64] | None:
    """Return the factors by which the channels of a kernel were multiplied; None if they were not."""
    return None if value.const_value is None else value.const_value.meta.get(_GAIN)
