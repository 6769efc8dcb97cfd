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
    tensor = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.const_value = tensor
    value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
