"""Transposed products are turned round, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gemel.runtime.program import read
from gemel.runtime.relayout import transpose_products


def model(**attributes: Any) -> bytes:
    weight = numpy_helper.from_array(np.zeros((5, 3), np.float32), "w")
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], **attributes)]
    if attributes.get("alpha"):
        nodes.append(helper.make_node("Identity", ["w"], ["z"]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    data: bytes = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])).SerializeToString()
    return data


def test_swapped() -> None:
    proto = read(model(transB=1))
    assert transpose_products(proto) == {"w"}
    after = onnx.load_from_string(proto.SerializeToString()).graph
    assert list(after.initializer[0].dims) == [3, 5]
    assert after.node[0].attribute[0].i == 0


@pytest.mark.parametrize("attributes", [{}, {"transB": 0}, {"transB": 1, "alpha": 1}])
def test_left_alone(attributes: dict[str, int]) -> None:
    """Not transposed; or read by another node as well."""
    proto = read(model(**attributes))
    before = proto.SerializeToString()
    assert transpose_products(proto) == set()
    assert proto.SerializeToString() == before
