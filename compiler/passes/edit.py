"""Small edits that several passes need."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["constant", "replace_constant"]


def constant(value: ir.Value | None) -> NDArray[Any]:
    """The array of an initializer; the caller has made sure that it is one."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value.name if value else None!r} is not an initializer")
    return np.ascontiguousarray(value.const_value.numpy())


def replace_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer another array; dtype and shape follow it."""
    # A single number stays one: NumPy would make a vector of it.
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
    value.const_value = tensor
    # A new one: a graph's clone has the same objects for its types.
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
