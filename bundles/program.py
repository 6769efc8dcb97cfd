"""Splitting of ONNX models into programs, which are graphs without weights in a canonical form, and weights.

A compiled model is a program and the addresses of its weights. :func:`split_model` makes every weight of an ONNX model
a graph input, and writes the rest in a form that depends on the architecture alone. Nodes are in depth-first order from
the outputs, values are named by first appearance, attributes are sorted, and node names, doc strings and metadata are
left out. Two models of one architecture therefore give one program, byte for byte, although exporters and optimisers
choose names and orders freely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from operator import attrgetter
from typing import Any

from numpy.typing import NDArray

from ..errors import BackendError, BundleError
from .form_nodes import without_forms
from .manifest import Stage, TensorSpec
from .onnx_wire import DTYPES, Message, ModelProto, dtype_name, make_tensor

__all__ = ["Program", "port_dtype", "port_shape", "read_model", "split_model", "tensors_of", "with_constants"]

_CONSTANT_OPERANDS = frozenset(
    {"Clip", "Expand", "Pad", "Pow", "QuickGelu", "Range", "Reshape", "Resize", "Slice", "Split", "TopK", "Upsample"}
    | {"DequantizeLinear", "QuantizeLinear"}
)
"""Operators whose inputs after the first must stay constants.

Runtimes read these inputs when they prepare an operator, or fold them into an activation. TensorRT builds no engine
whose scales are inputs."""
_QUANTIZED = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger")
"""Prefixes of the names of operators that compute in integers. Their scales and zero points must stay constants."""
_FLOATS = frozenset({1, 10, 11})
"""TensorProto.DataType numbers of float, float16 and double."""
_INT8 = frozenset({2, 3})
"""TensorProto.DataType numbers of uint8 and int8."""


@dataclass(frozen=True)
class Program:
    """Program: the graph of an ONNX model in canonical form, whose weights are graph inputs."""

    id: str
    """Id of a program: the first 128 bits of the SHA-256 of the program's serialised ONNX model, in hex."""
    proto: bytes
    """Serialised ONNX model of a program. Its inputs are the inputs of the model that was split, then one per weight,
    called ``w0``, ``w1``, ... without names that an input or output of that model has."""
    weights: tuple[str, ...]
    """Names of the weights' initializers in the model that was split into a program, in the order of the program's
    inputs."""


def read_model(data: bytes) -> Message:
    """Return the ModelProto of a serialised ONNX model."""
    model = ModelProto()
    model.ParseFromString(data)
    return model


def split_model(model: Message) -> Program:
    """Split an ONNX model into its program (the graph with weights as inputs) and the names of its weights.

    Args:
        model: a ModelProto, which is not changed. Weights may be inline or external, or computed from forms: their
            values are not read.

    Raises:
        BackendError: the graph has subgraphs (If, Loop, Scan), whose captured names cannot be made canonical.
    """
    model = without_forms(model)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    held = _constant_operands(graph.node, initializers)
    weights: list[str] = []
    constants: list[str] = []
    names = {port.name: port.name for port in (*graph.input, *graph.output) if port.name not in initializers}
    names[""] = ""
    taken = frozenset((*names, *(port.name for port in graph.output)))
    fresh = {letter: _fresh(letter, taken) for letter in "wcv"}
    order: list[Message] = []
    for item in _depth_first(graph, producers):
        if isinstance(item, str):
            if item in initializers and item not in names:
                bucket, letter = (weights, "w") if _is_weight(initializers[item], item in held) else (constants, "c")
                names[item] = next(fresh[letter])
                bucket.append(item)
            continue
        for output in item.output:
            if output not in names:
                names[output] = next(fresh["v"])
        order.append(item)
    # An output that is an initializer: the program copies the weight, as one value cannot have both names.
    copied = [port.name for port in graph.output if port.name in initializers]

    program = ModelProto()
    program.CopyFrom(model)
    for field in ("node", "initializer", "input", "value_info", "name", "doc_string", "metadata_props"):
        program.graph.ClearField(field)
    program.ClearField("metadata_props")
    program.graph.name = "program"
    program.graph.input.extend(port for port in graph.input if port.name not in initializers)
    for name in weights:
        _add_input(program.graph, names[name], initializers[name])
    for name in constants:
        program.graph.initializer.add().CopyFrom(initializers[name])
        program.graph.initializer[-1].name = names[name]
    for node in order:
        program.graph.node.add().CopyFrom(_canonical(node, names))
    for name in copied:
        program.graph.node.add(op_type="Identity", input=[names[name]], output=[name])
    data: bytes = program.SerializeToString(deterministic=True)
    return Program(hashlib.sha256(data).hexdigest()[:32], data, tuple(weights))


def tensors_of(model: Message, stage: Stage) -> dict[str, str]:
    """Return initializer name -> tensor id, for all initializers of a stage that are weights.

    Args:
        model: the ModelProto in the stage's file.
        stage: the stage's entry in the bundle's manifest.

    Raises:
        BackendError: the graph has subgraphs, see :func:`split_model`.
        BundleError: the manifest names more or fewer tensors than the model has weights.
    """
    names = split_model(model).weights
    if len(names) != len(stage.weights):
        raise BundleError(f"{stage.file}: has {len(names)} weights, the manifest says {len(stage.weights)}")
    return dict(zip(names, stage.weights, strict=True))


def with_constants(proto: bytes, location: str, places: Sequence[TensorSpec | NDArray[Any]]) -> bytes:
    """Return a serialised program with its weights as initializers: the inverse of :func:`split_model`.

    Args:
        proto: serialised program from :func:`split_model`.
        location: name of the file that holds the weights, in the folder where the result will be saved.
        places: offset, length and shape of each weight in the file, in the order of the program's inputs; the values
            of a weight that does not lie in the file.
    """
    model = read_model(proto)
    ports = list(model.graph.input)
    first = len(ports) - len(places)
    del model.graph.input[first:]
    for port, place in zip(ports[first:], places, strict=True):
        if not isinstance(place, TensorSpec):
            model.graph.initializer.append(make_tensor(port.name, place))
            continue
        tensor = model.graph.initializer.add(
            name=port.name, data_type=port.type.tensor_type.elem_type, dims=place.shape, data_location=1
        )
        for key, value in (("location", location), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def port_shape(port: Message) -> tuple[int | str, ...]:
    """Return the shape of a graph input or output; a dynamic dimension is its name, or ``?`` if it has none."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
        for dim in port.type.tensor_type.shape.dim
    )


def port_dtype(port: Message) -> str:
    """Return NumPy's name of the element type of a graph input or output."""
    return dtype_name(port.type.tensor_type.elem_type)


def _depth_first(graph: Message, producers: dict[str, Message]) -> Iterator[Any]:
    """Yield the nodes of a graph, and the names of its inputs and initializers, depth-first from the outputs; a node
    follows its inputs."""
    # An explicit stack: a deep network can have a longer chain of nodes than Python has stack frames.
    seen: set[int] = set()
    stack: list[Any] = [port.name for port in reversed(graph.output)]
    while stack:
        item = stack.pop()
        if not isinstance(item, str):
            yield item
            continue
        node = producers.get(item)
        if node is None:
            yield item
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append(node)
            stack.extend(reversed(node.input))


def _fresh(letter: str, taken: frozenset[str]) -> Iterator[str]:
    return (name for name in (f"{letter}{index}" for index in count()) if name not in taken)


def _constant_operands(nodes: Any, initializers: Mapping[str, Message]) -> set[str]:
    """Return the names of a graph's values that must stay constants when the graph is made a program.

    Raises:
        BackendError: a node has a subgraph.
    """
    held: set[str] = set()
    for node in nodes:
        if any(attribute.HasField("g") or len(attribute.graphs) for attribute in node.attribute):
            raise BackendError(f"node {node.name or node.op_type}: {node.op_type} with a subgraph cannot be compiled")
        if node.op_type in _CONSTANT_OPERANDS:
            held.update(node.input[1:])
        elif node.op_type.startswith(_QUANTIZED):
            held.update(name for name in node.input if name in initializers and len(initializers[name].dims) < 2)
    return held


def _is_weight(tensor: Message, held: bool) -> bool:
    numeric = tensor.data_type in _FLOATS or (tensor.data_type in _INT8 and len(tensor.dims) > 1)
    return numeric and prod(tensor.dims) > 1 and not held


def _add_input(graph: Message, name: str, tensor: Message) -> None:
    if tensor.data_type not in DTYPES:
        raise BackendError(f"weight {tensor.name}: TensorProto type {tensor.data_type} is not supported")
    port = graph.input.add(name=name)
    port.type.tensor_type.elem_type = tensor.data_type
    for size in tensor.dims:
        port.type.tensor_type.shape.dim.add(dim_value=size)


def _canonical(node: Message, names: dict[str, str]) -> Message:
    copy = type(node)()
    copy.CopyFrom(node)
    for field in ("name", "doc_string", "metadata_props"):
        copy.ClearField(field)
    for values in (copy.input, copy.output):
        renamed = [names[value] for value in values]
        del values[:]
        values.extend(renamed)
    ordered = sorted(node.attribute, key=attrgetter("name"))
    del copy.attribute[:]
    copy.attribute.extend(ordered)
    return copy
