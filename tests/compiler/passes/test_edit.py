"""Ids of initializers: hashed once, and again after a replacement."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gemel.bundles.blob import tensor_id
from gemel.compiler.passes import edit


def test_an_initializer_is_hashed_once_until_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(array: np.ndarray) -> str:
        hashed.append(array.nbytes)
        return tensor_id(array)

    monkeypatch.setattr(edit, "tensor_id", counted)
    value = ir.Value(name="w")
    edit.replace_constant(value, np.ones((2, 3), np.float32))
    assert edit.constant_id(value) == edit.constant_id(value) == tensor_id(np.ones((2, 3), np.float32))
    assert hashed == [24]
    edit.replace_constant(value, np.zeros((2, 3), np.float32))
    assert edit.constant_id(value) == tensor_id(np.zeros((2, 3), np.float32))
    assert hashed == [24, 24]


def test_what_is_no_initializer_has_no_id() -> None:
    with pytest.raises(ValueError, match="'x' is not an initializer"):
        edit.constant_id(ir.Value(name="x"))
