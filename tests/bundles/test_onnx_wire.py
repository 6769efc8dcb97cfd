"""Values of inline tensors, in every encoding of the ONNX format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gemel.bundles import onnx_wire
from gemel.errors import BackendError


def wired(tensor: TensorProto) -> Any:
    return onnx_wire.TensorProto.FromString(tensor.SerializeToString())


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.uint64, np.bool_]
)
@pytest.mark.parametrize("raw", [True, False])
def test_values(dtype: Any, raw: bool) -> None:
    values: NDArray[Any] = np.array([[0, 1, 2.5], [-3 if np.dtype(dtype).kind in "fi" else 3, 100, 7]]).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = (
        numpy_helper.from_array(values) if raw else helper.make_tensor("t", kind, values.shape, values.ravel().tolist())
    )
    assert tensor.HasField("raw_data") is raw
    found = onnx_wire.tensor_array(wired(tensor))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_no_values_at_all_are_not_zeros() -> None:
    with pytest.raises(BackendError, match=r"tensor 't': has 0 values, its shape is \[2, 3\]"):
        onnx_wire.tensor_array(wired(TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[2, 3])))
    empty = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[0, 3])
    assert onnx_wire.tensor_array(wired(empty)).shape == (0, 3)


def test_too_few_bytes() -> None:
    short = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"12345")
    with pytest.raises(BackendError, match="tensor 't': has 1 values"):
        onnx_wire.tensor_array(wired(short))


def test_external_locations_wherever_the_format_has_tensors() -> None:
    def outside(location: str) -> TensorProto:
        tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return tensor

    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=outside("subgraph"))], "inner", [], [])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, tensors=[outside("list")])
    graph = helper.make_graph([node], "outer", [], [], [outside("initializer"), helper.make_tensor("t", 1, [1], [0])])
    graph.sparse_initializer.add(values=outside("sparse"), indices=outside("indices"))
    model = helper.make_model(graph)
    model.functions.add(node=[helper.make_node("Constant", [], ["y"], value=outside("function"))])
    found = onnx_wire.external_locations(model.SerializeToString())
    assert found == {"subgraph", "list", "initializer", "sparse", "indices", "function"}
