"""Reader and writer of the part of the ONNX file format that the runtime edits; needs no onnx package.

ONNX Runtime depends on protobuf, and protobuf keeps unknown fields when it writes a message back. A descriptor of the
few fields that programs consist of (onnx.proto3, field numbers as published) is therefore enough to read an optimised
graph, turn its weights into inputs and write the graph again.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf import message as google_message
from numpy.typing import NDArray

from ..errors import BackendError

__all__ = [
    "DTYPES",
    "Message",
    "ModelProto",
    "NodeProto",
    "TensorProto",
    "ValueInfoProto",
    "dtype_name",
    "external_locations",
    "make_tensor",
    "tensor_array",
]

Message = Any
"""Type of protobuf messages whose class is generated at run time, so that there is no static type."""

_SCALARS = {"int32": 5, "int64": 3, "string": 9, "bytes": 12, "float": 2, "double": 1, "uint64": 4}
"""Name of each scalar type -> the type's number in protobuf's FieldDescriptorProto.Type."""

_FIELDS: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ModelProto": {"graph": (7, "GraphProto", False), "metadata_props": (14, "StringStringEntryProto", True)},
    "GraphProto": {
        "node": (1, "NodeProto", True),
        "name": (2, "string", False),
        "initializer": (5, "TensorProto", True),
        "doc_string": (10, "string", False),
        "input": (11, "ValueInfoProto", True),
        "output": (12, "ValueInfoProto", True),
        "value_info": (13, "ValueInfoProto", True),
        "metadata_props": (16, "StringStringEntryProto", True),
    },
    "NodeProto": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "AttributeProto", True),
        "doc_string": (6, "string", False),
        "domain": (7, "string", False),
        "metadata_props": (9, "StringStringEntryProto", True),
    },
    # Because ``type`` is listed, every field with a lower number must be listed too: protobuf writes unknown fields
    # last, and another order of bytes would give programs other ids.
    "AttributeProto": {
        "name": (1, "string", False),
        "f": (2, "float", False),
        "i": (3, "int64", False),
        "s": (4, "bytes", False),
        "t": (5, "TensorProto", False),
        "g": (6, "GraphProto", False),
        "floats": (7, "float", True),
        "ints": (8, "int64", True),
        "strings": (9, "bytes", True),
        "graphs": (11, "GraphProto", True),
        "type": (20, "int32", False),
    },
    "TensorProto": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "float_data": (4, "float", True),
        "int32_data": (5, "int32", True),
        "int64_data": (7, "int64", True),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
        "double_data": (10, "double", True),
        "uint64_data": (11, "uint64", True),
        "external_data": (13, "StringStringEntryProto", True),
        "data_location": (14, "int32", False),
    },
    "StringStringEntryProto": {"key": (1, "string", False), "value": (2, "string", False)},
    "ValueInfoProto": {"name": (1, "string", False), "type": (2, "TypeProto", False)},
    "TypeProto": {"tensor_type": (1, "TensorTypeProto", False)},
    "TensorTypeProto": {"elem_type": (1, "int32", False), "shape": (2, "TensorShapeProto", False)},
    "TensorShapeProto": {"dim": (1, "DimensionProto", True)},
    "DimensionProto": {"dim_value": (1, "int64", False), "dim_param": (2, "string", False)},
}
"""Name of each protobuf message -> name of a field -> (field number, type, whether the field is repeated)."""


_PLACES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ModelProto": {"graph": (7, "GraphProto", False), "functions": (25, "GraphOfFunction", True)},
    "GraphOfFunction": {"node": (7, "NodeProto", True)},
    "GraphProto": {
        "node": (1, "NodeProto", True),
        "initializer": (5, "TensorProto", True),
        "sparse_initializer": (15, "SparseTensorProto", True),
    },
    "NodeProto": {"attribute": (5, "AttributeProto", True)},
    "AttributeProto": {
        "t": (5, "TensorProto", False),
        "g": (6, "GraphProto", False),
        "tensors": (10, "TensorProto", True),
        "graphs": (11, "GraphProto", True),
        "sparse_tensor": (22, "SparseTensorProto", False),
        "sparse_tensors": (23, "SparseTensorProto", True),
    },
    "SparseTensorProto": {"values": (1, "TensorProto", False), "indices": (2, "TensorProto", False)},
    "TensorProto": {"external_data": _FIELDS["TensorProto"]["external_data"]},
    "StringStringEntryProto": _FIELDS["StringStringEntryProto"],
}
"""Fields, as in ``_FIELDS``, through which a model refers to a file, wherever the format allows a tensor."""


def _messages(package: str, described: dict[str, dict[str, tuple[int, str, bool]]]) -> dict[str, Message]:
    """Return name -> class of the messages that a table such as ``_FIELDS`` describes."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for message, fields in described.items():
        entry = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = entry.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in _SCALARS:
                field.type = _SCALARS[kind]  # type: ignore[assignment]
                # Readers accept packed and unpacked numbers. Packed tensors are smaller; attributes stay unpacked, as
                # other writers have them.
                packed = repeated and message != "AttributeProto"
                field.options.packed = packed and kind not in ("string", "bytes")
            else:
                field.type, field.type_name = 11, f".{package}.{kind}"  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    types = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in described}
    return {name: message_factory.GetMessageClass(kind) for name, kind in types.items()}


_CLASSES = _messages("gemel.wire", _FIELDS)
_PlacesOfModel = _messages("gemel.places", _PLACES)["ModelProto"]
ModelProto = _CLASSES["ModelProto"]
NodeProto = _CLASSES["NodeProto"]
TensorProto = _CLASSES["TensorProto"]
ValueInfoProto = _CLASSES["ValueInfoProto"]

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
}
"""TensorProto.DataType number -> NumPy dtype, for the types that weights of vision models have."""


def dtype_name(data_type: int) -> str:
    """Return NumPy's name of a TensorProto.DataType number, such as ``float32`` for 1."""
    return str(DTYPES[data_type].name)


def external_locations(data: bytes) -> set[str]:
    """Return the files in which tensors of a serialised ONNX model lie, as the model names them.

    Tensors of subgraphs, functions, attributes and sparse tensors count too.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no ONNX model.
    """
    model = _PlacesOfModel()
    model.ParseFromString(data)
    found: set[str] = set()
    messages = [model]
    while messages:
        message = messages.pop()
        for field, value in message.ListFields():
            if field.name == "external_data":
                found.update(entry.value for entry in value if entry.key == "location")
            else:
                messages.extend([value] if isinstance(value, google_message.Message) else value)
    return found


def make_tensor(name: str, array: NDArray[Any]) -> Message:
    """Return an inline TensorProto with the values of an array, whose dtype must be one of :data:`DTYPES`."""
    (data_type,) = (number for number, dtype in DTYPES.items() if dtype == array.dtype)
    return TensorProto(name=name, data_type=data_type, dims=array.shape, raw_data=array.tobytes())


def tensor_array(tensor: Message) -> NDArray[Any]:
    """Return the values of an inline TensorProto as an array: a view of its raw bytes if it has any, otherwise a copy.

    Raises:
        BackendError: the number of values differs from the tensor's shape.
    """
    dtype = DTYPES[tensor.data_type]
    shape = tuple(tensor.dims)
    values = _stored(tensor, dtype)
    if values.size != prod(shape):
        raise BackendError(f"tensor {tensor.name!r}: has {values.size} values, its shape is {list(shape)}")
    return values.reshape(shape)


def _stored(tensor: Message, dtype: np.dtype[Any]) -> NDArray[Any]:
    if tensor.HasField("raw_data"):
        whole = len(tensor.raw_data) // dtype.itemsize * dtype.itemsize
        return np.frombuffer(tensor.raw_data[:whole], dtype)
    if dtype == np.float16:
        # The format stores the bits of a float16 as an integer, not its value.
        return np.array(tensor.int32_data, np.int32).astype(np.uint16).view(np.float16)
    for field in (
        tensor.float_data,
        tensor.double_data,
        tensor.int64_data,
        tensor.uint64_data,
        tensor.int32_data,
    ):
        if len(field):
            return np.array(field).astype(dtype)
    return np.zeros(0, dtype)
