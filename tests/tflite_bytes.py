"""Small TensorFlow Lite files, written with the package ``tflite``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

__all__ = ["TfliteWriter"]


class TfliteWriter:
    """Writer of a TensorFlow Lite file with one graph; constants are stored in half precision.

    Args:
        image: shape of the input, N H W C.
    """

    def __init__(self, image: Sequence[int]) -> None:
        self._tensors: list[tuple[str, tuple[int, ...], NDArray[Any] | None]] = [("image", tuple(image), None)]
        self._operators: list[tuple[str, list[int], int, Mapping[str, Any]]] = []

    def constant(self, value: Any, dtype: Any = np.float16) -> int:
        """Add a constant and return its number; one in half precision is followed by the operator that widens it."""
        array = np.asarray(value, dtype)
        self._tensors.append((f"constant{len(self._tensors)}", array.shape, array))
        if array.dtype != np.float16:
            return len(self._tensors) - 1
        return self.operator("DEQUANTIZE", [len(self._tensors) - 1], array.shape)

    def operator(self, kind: str, inputs: Sequence[int], shape: Sequence[int], **options: Any) -> int:
        """Add an operator and return the number of its output, which has the given shape."""
        self._tensors.append((f"tensor{len(self._tensors)}", tuple(shape), None))
        self._operators.append((kind, list(inputs), len(self._tensors) - 1, options))
        return len(self._tensors) - 1

    def write(self, outputs: Sequence[int]) -> bytes:
        """Return the file's content."""
        builder = flatbuffers.Builder(1024)
        contents = [b"", *(b"" if value is None else value.tobytes() for _, _, value in self._tensors)]
        buffers = []
        for content in contents:
            data = builder.CreateByteVector(content) if content else None
            tflite.BufferStart(builder)
            if data is not None:
                tflite.BufferAddData(builder, data)
            buffers.append(tflite.BufferEnd(builder))
        tensors = [self._tensor(builder, number) for number in range(len(self._tensors))]
        kinds = sorted({kind for kind, *_ in self._operators})
        operators = [self._operator(builder, kinds, *each) for each in self._operators]
        codes = []
        for kind in kinds:
            tflite.OperatorCodeStart(builder)
            # Numbers below 127 are in this field; readers look at the newer one for others.
            tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, getattr(tflite.BuiltinOperator, kind))
            codes.append(tflite.OperatorCodeEnd(builder))
        parts = [self._vector(builder, each) for each in (tensors, operators)]
        ends = [builder.CreateNumpyVector(np.array(each, np.int32)) for each in ([0], outputs)]
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddTensors(builder, parts[0])
        tflite.SubGraphAddOperators(builder, parts[1])
        tflite.SubGraphAddInputs(builder, ends[0])
        tflite.SubGraphAddOutputs(builder, ends[1])
        graph = self._vector(builder, [tflite.SubGraphEnd(builder)])
        lists = [self._vector(builder, each) for each in (codes, buffers)]
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, lists[0])
        tflite.ModelAddSubgraphs(builder, graph)
        tflite.ModelAddBuffers(builder, lists[1])
        builder.Finish(tflite.ModelEnd(builder), b"TFL3")
        return bytes(builder.Output())

    def _vector(self, builder: Any, offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def _tensor(self, builder: Any, number: int) -> int:
        name, shape, value = self._tensors[number]
        text, sizes = builder.CreateString(name), builder.CreateNumpyVector(np.array(shape, np.int32))
        kinds = {"float16": tflite.TensorType.FLOAT16, "int32": tflite.TensorType.INT32}
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, sizes)
        tflite.TensorAddType(builder, tflite.TensorType.FLOAT32 if value is None else kinds[str(value.dtype)])
        tflite.TensorAddBuffer(builder, 0 if value is None else number + 1)
        tflite.TensorAddName(builder, text)
        return int(tflite.TensorEnd(builder))

    def _operator(
        self, builder: Any, kinds: Sequence[str], kind: str, inputs: list[int], output: int, options: Mapping[str, Any]
    ) -> int:
        ends = [builder.CreateNumpyVector(np.array(each, np.int32)) for each in (inputs, [output])]
        table, given = None, dict(options)
        if name := given.pop("table", None):
            getattr(tflite, f"{name}Start")(builder)
            for field, value in given.items():
                getattr(tflite, f"{name}Add{field}")(builder, value)
            table = getattr(tflite, f"{name}End")(builder)
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, kinds.index(kind))
        tflite.OperatorAddInputs(builder, ends[0])
        tflite.OperatorAddOutputs(builder, ends[1])
        if table is not None:
            tflite.OperatorAddBuiltinOptionsType(builder, getattr(tflite.BuiltinOptions, str(name)))
            tflite.OperatorAddBuiltinOptions(builder, table)
        return int(tflite.OperatorEnd(builder))
