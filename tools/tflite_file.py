"""Read the graph and the constants of a TensorFlow Lite file, with the schema in the package ``tflite``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray

from gemel.errors import ModelError

__all__ = ["Operator", "TfliteGraph", "constant_of", "read_tflite"]

_IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of a TensorFlow Lite file."""
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "ADD": "AddOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions",
}
"""Operator -> table of the schema that holds the operator's settings."""
_TYPES = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "INT64": "<i8"}
"""Type of a tensor in the schema -> NumPy's name of the type."""


@dataclass(frozen=True)
class Operator:
    """Operator of a TensorFlow Lite graph."""

    kind: str
    """Name of the operator, such as ``CONV_2D``."""
    inputs: tuple[str | NDArray[Any], ...]
    """Inputs in the schema's order: names of computed tensors, and constants by value."""
    output: str
    """Name of the operator's only output."""
    options: Mapping[str, int]
    """Settings that shape the result: those of ``padding`` (0: SAME, 1: VALID), ``activation`` (0: none, 1: ReLU,
    3: ReLU6), ``stride`` and ``dilation`` that the operator has."""


@dataclass(frozen=True)
class TfliteGraph:
    """First graph of a TensorFlow Lite file; half-precision constants are widened to float32."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Name of a computed tensor -> its shape, with images as N H W C."""
    operators: tuple[Operator, ...]
    """Operators in the order in which they run; those that only widen a constant are left out."""


def read_tflite(data: bytes, where: str) -> TfliteGraph:
    """Read the first graph of a TensorFlow Lite file.

    Args:
        data: content of the file; bytes behind its end are ignored.
        where: path to name in errors.

    Raises:
        ModelError: the data is no TensorFlow Lite file, or an operator has several outputs or unequal strides.
    """
    if data[4:8] != _IDENTIFIER:
        raise ModelError(f"{where}: not a TensorFlow Lite file")
    model = tflite.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    names = [graph.Tensors(index).Name().decode() for index in range(graph.TensorsLength())]
    shapes = {names[index]: _shape(graph.Tensors(index)) for index in range(len(names))}
    constants = {index: value for index in range(len(names)) if (value := _constant(model, graph, index)) is not None}
    operators = tuple(_operators(model, graph, names, constants, where))
    return TfliteGraph(
        tuple(names[index] for index in graph.InputsAsNumpy()),
        tuple(names[index] for index in graph.OutputsAsNumpy()),
        shapes,
        operators,
    )


def constant_of(operator: Operator, position: int, where: str) -> NDArray[np.float32]:
    """Return a constant input of an operator as float32.

    Raises:
        ModelError: the input is missing or computed.
    """
    value = operator.inputs[position] if position < len(operator.inputs) else None
    if not isinstance(value, np.ndarray):
        raise ModelError(f"{where}: input {position} of {operator.kind} ({operator.output}) is no constant")
    return value.astype(np.float32, copy=False)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))


def _constant(model: Any, graph: Any, index: int) -> NDArray[Any] | None:
    """Return the value of a tensor that the file stores; None for a computed tensor."""
    tensor = graph.Tensors(index)
    content = model.Buffers(tensor.Buffer())
    if not content.DataLength():
        return None
    names = {number: name for name, number in vars(tflite.TensorType).items() if isinstance(number, int)}
    kind = _TYPES.get(names[tensor.Type()])
    shape = _shape(tensor)
    if kind is None or content.DataLength() != math.prod(shape) * np.dtype(kind).itemsize:
        return None
    value = content.DataAsNumpy().view(kind).reshape(shape)
    return value.astype(np.float32) if kind == "<f2" else value


def _operators(
    model: Any, graph: Any, names: list[str], constants: dict[int, NDArray[Any]], where: str
) -> Iterator[Operator]:
    kinds = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        kind = kinds[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]
        inputs = [int(index) for index in operator.InputsAsNumpy()]
        if operator.OutputsLength() != 1:
            raise ModelError(f"{where}: {kind} has {operator.OutputsLength()} outputs")
        output = int(operator.Outputs(0))
        if kind == "DEQUANTIZE" and inputs[0] in constants:
            constants[output] = constants[inputs[0]]
            continue
        given = tuple(constants.get(index, names[index]) for index in inputs if index >= 0)
        yield Operator(kind, given, names[output], _options(operator, kind, where))


def _options(operator: Any, kind: str, where: str) -> dict[str, int]:
    """Return the settings of an operator that :class:`Operator` lists."""
    table = operator.BuiltinOptions()
    if kind not in _OPTIONS or table is None:
        return {}
    options = getattr(tflite, _OPTIONS[kind])()
    options.Init(table.Bytes, table.Pos)
    found = {}
    for name, getter in (("padding", "Padding"), ("activation", "FusedActivationFunction"), ("keep", "KeepDims")):
        if hasattr(options, getter):
            found[name] = int(getattr(options, getter)())
    for name, across, down in (("stride", "StrideW", "StrideH"), ("dilation", "DilationWFactor", "DilationHFactor")):
        if hasattr(options, across):
            found[name] = int(getattr(options, across)())
            if found[name] != getattr(options, down)():
                raise ModelError(f"{where}: {kind} has different {name}s along the two axes")
    return found
