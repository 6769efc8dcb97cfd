"""Nodes of an ONNX graph that compute a kernel from its form, so that any ONNX tool runs the graph.

The nodes have only initializers as inputs, so that runtimes fold them into the kernel when they open the file. Every
such node is marked; :func:`without_forms` turns them into an initializer again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from .codes import Bits, code_table
from .form_specs import FormSpec
from .manifest import TensorSpec
from .onnx_wire import DTYPES, Message, NodeProto, TensorProto, make_tensor

__all__ = ["put_forms", "without_forms"]

_MARK = "gemel.form"
"""Key of the metadata of a node that computes a kernel. The last node of a kernel has the kernel's shape there."""
_PREFIX = "gemel.form/"
"""Beginning of the names of the initializers and values that a kernel is computed from."""
_FLOAT, _INT32 = 1, 6  # TensorProto.DataType
_INT = 2  # AttributeProto.AttributeType


def put_forms(
    model: Message, forms: Mapping[str, FormSpec], tensors: Mapping[str, TensorSpec], location: str
) -> Message:
    """Return a model in which some initializers are computed from their forms. The model itself may be changed.

    Args:
        model: a ModelProto.
        forms: name of an initializer -> form of the kernel.
        tensors: tensor id -> offset, length, dtype and shape.
        location: name of the file that holds the tensors.
    """
    graph = model.graph
    nodes: list[Message] = []
    parts: dict[str, Message] = {}
    for name, form in forms.items():
        nodes += _nodes(name, form, tensors, location, parts)
    kept = [tensor for tensor in graph.initializer if tensor.name not in forms]
    _replace(graph.initializer, (*kept, *parts.values()))
    _replace(graph.node, (*nodes, *graph.node))
    return model


def without_forms(model: Message, values: Callable[[str], NDArray[Any]] | None = None) -> Message:
    """Return a model in which every kernel is an initializer; the model itself if no kernel is computed from a form.

    Args:
        model: a ModelProto, which is not changed.
        values: function that returns the values of a kernel, given its name; when left out, the initializers have a
            shape and no values.

    Raises:
        BackendError: a node that computes a kernel is damaged.
    """
    if not any(_mark(node) is not None for node in model.graph.node):
        return model
    made = type(model)()
    made.CopyFrom(model)
    graph = made.graph
    kernels = [
        _kernel(node.output[0], mark, values) for node in graph.node if (mark := _mark(node)) and len(node.output)
    ]
    kept = [tensor for tensor in graph.initializer if not tensor.name.startswith(_PREFIX)]
    _replace(graph.initializer, (*kept, *kernels))
    _replace(graph.node, [node for node in graph.node if _mark(node) is None])
    return made


def _kernel(name: str, mark: str, values: Callable[[str], NDArray[Any]] | None) -> Message:
    if values is not None:
        return make_tensor(name, values(name))
    try:
        return TensorProto(name=name, data_type=_FLOAT, dims=[int(size) for size in json.loads(mark)])
    except (ValueError, TypeError) as error:
        raise BackendError(f"kernel {name}: {_MARK} is {mark[:40]!r}, a shape is expected") from error


def _nodes(
    name: str, form: FormSpec, tensors: Mapping[str, TensorSpec], location: str, parts: dict[str, Message]
) -> list[Message]:
    """Return the nodes that compute a kernel, and add the initializers that the nodes read to ``parts``."""

    def part(kind: str, tensor: str, dims: Iterable[int]) -> str:
        spec, title = tensors[tensor], f"{_PREFIX}{name}/{kind}"
        (data_type,) = (number for number, dtype in DTYPES.items() if dtype == np.dtype(spec.dtype))
        parts[title] = made = TensorProto(name=title, data_type=data_type, dims=dims, data_location=1)
        for key, value in (("location", location), ("offset", spec.offset), ("length", spec.length)):
            made.external_data.add(key=key, value=str(value))
        return title

    def channels(kind: str, tensor: str) -> str:
        # Channels are the first axis of a kernel, or the last one if all of them are interleaved.
        wide = [1] * (len(form.shape) - 1) if form.block == 1 else []
        return part(kind, tensor, [tensors[tensor].length // 4, *wide])

    shape = f"{_PREFIX}{name}/shape"
    parts[shape] = make_tensor(shape, np.array(form.shape, np.int64))
    made: list[Message] = []

    def node(operator: str, *inputs: str, **attributes: int) -> str:
        """Add a node, and return the name of its output."""
        made.append(NodeProto(op_type=operator, input=inputs, output=[f"{_PREFIX}{name}/{len(made)}"]))
        for key, number in attributes.items():
            made[-1].attribute.add(name=key, i=number, type=_INT)
        return str(made[-1].output[0])

    def product(kind: str, codes: str, bits: Bits, scale_kind: str, scale: str) -> str:
        """Add the nodes that multiply codes by their scale, and return the name of the product."""
        table = f"{_PREFIX}table/{bits}"
        parts[table] = make_tensor(table, code_table(bits))
        places = node("Cast", part(kind, codes, [tensors[codes].length]), to=_INT32)
        integers = node("Reshape", node("Gather", table, places, axis=0), shape)
        return node("Mul", integers, channels(scale_kind, scale))

    value = product("codes", form.codes, form.bits, "scale", form.scale)
    if form.base is not None:
        if form.base_bits is None or form.base_scale is None:
            base = part("base", form.base, form.shape)
        else:
            base = product("base", form.base, form.base_bits, "base_scale", form.base_scale)
        value = node("Add", value, base)
    if form.gain is not None:
        value = node("Mul", value, channels("gain", form.gain))
    made[-1].output[0] = name
    for each in made:
        each.metadata_props.add(key=_MARK, value=json.dumps(form.shape) if each is made[-1] else "")
    return made


def _mark(node: Message) -> str | None:
    """Return the mark of a node that computes a kernel, which is empty except at the last one; None for others."""
    return next((entry.value for entry in node.metadata_props if entry.key == _MARK), None)


def _replace(field: Message, messages: Iterable[Message]) -> None:
    """Replace the messages of a repeated field; some of the new ones may be among the old ones."""
    copies = []
    for message in messages:
        copies.append(copy := type(message)())
        copy.CopyFrom(message)
    del field[:]
    field.extend(copies)
