"""Reading of models that come as ONNX files: input size and batch are set, and the outputs tell the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, ShapeInferencePass

from ...bundles.decode_specs import CenterFaceDecode, ClassificationDecode, DecodeSpec, EmbeddingDecode
from ...bundles.manifest import InputSpec
from ...errors import ModelError, first_line
from ...workload.document.schema import Input
from ..passes import LiftConstants

__all__ = ["OnnxSource", "read_onnx", "run_file"]

_CENTERFACE_CHANNELS = (1, 2, 2, 10)
"""Channels of CenterFace's outputs: heatmap, scale, offset, landmarks."""


@dataclass(frozen=True)
class OnnxSource:
    """Model that was read from an ONNX file."""

    model: ir.Model
    decode: DecodeSpec
    input: InputSpec
    weights: frozenset[str]
    """Names of the initializers that are weights."""


def read_onnx(path: Path, task: str, wanted: Input) -> OnnxSource:
    """Read an ONNX file.

    Args:
        path: file to read; external data, if any, lies beside it.
        task: classification, detection or embedding.
        wanted: input that the workload asks for; ``size`` is needed if the file leaves the size open.

    Raises:
        ModelError: the file is not ONNX, its input is not one image, or no decoder knows the outputs of a detector.
    """
    try:
        model = ir.load(path)
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX file: {first_line(error)}") from error
    ir.passes.Sequential(RemoveInitializersFromInputsPass(), LiftConstants())(model)
    channels, height, width = _set_input(model, path, wanted)
    outputs = run_file(path, np.zeros((1, channels, height, width), np.float32))
    for port in model.graph.outputs:
        # Measured, because shape inference fails if a shape is computed.
        port.shape = ir.Shape([ir.SymbolicDim("batch"), *outputs[port.name or ""].shape[1:]])
    decode, defaults = _recognise(model, path, task)
    color = "gray" if channels == 1 else "rgb"
    spec = {
        **defaults,
        "size": (height, width),
        "color": color,
        **wanted.model_dump(exclude_none=True, exclude={"size"}),
    }
    weights = frozenset(
        name
        for name, value in model.graph.initializers.items()
        if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) and value.shape is not None and _count(value) > 1
    )
    return OnnxSource(model, decode, InputSpec.model_validate(spec), weights)


def _count(value: ir.Value) -> int:
    """Return the number of elements of an initializer, or 0 for any other value."""
    return int(value.const_value.size) if value.const_value is not None else 0


def _set_input(model: ir.Model, path: Path, wanted: Input) -> tuple[int, int, int]:
    """Free the batch axis, fix height and width, and infer all shapes again.

    Returns:
        Channels, height and width.
    """
    graph = model.graph
    port = graph.inputs[0] if len(graph.inputs) == 1 else None
    declared = list(port.shape or ()) if port is not None else []
    if port is None or len(declared) != 4 or declared[1] not in (1, 3) or port.dtype != ir.DataType.FLOAT:
        found = ", ".join(f"{port.name} {port.dtype} {port.shape}" for port in graph.inputs)
        raise ModelError(f"{path}: one float32 input [N, 3 or 1, H, W] is expected, the file has: {found}")
    if (declared[1] == 1) != ((wanted.color or ("gray" if declared[1] == 1 else "rgb")) == "gray"):
        raise ModelError(f"{path}: input has {declared[1]} channels, model.input.color is {wanted.color}")
    size = wanted.size or (declared[2], declared[3])
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ModelError(f"{path}: the file leaves the input size open; set model.input.size: [height, width]")
    port.shape = ir.Shape([ir.SymbolicDim("batch"), declared[1], height, width])
    for node in graph:
        for value in node.outputs:
            value.shape = None
    ShapeInferencePass()(model)
    return 1 if declared[1] == 1 else 3, height, width


def _recognise(model: ir.Model, path: Path, task: str) -> tuple[DecodeSpec, dict[str, float]]:
    """Return the decoder for a file's outputs, and the input settings that this kind of model needs."""
    outputs = list(model.graph.outputs)
    shapes = [list(port.shape or ()) for port in outputs]
    names = [port.name or "" for port in outputs]
    if task == "embedding":
        return EmbeddingDecode(), {}
    if task == "classification":
        if len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
            raise ModelError(f"{path}: output {names[0]} {shapes[0]} is not [N, classes]")
        last = outputs[0].producer()
        done = last is not None and last.op_type == "Softmax"
        return ClassificationDecode(classes=shapes[0][1], activation="none" if done else "softmax"), {}
    channels = tuple(shape[1] if len(shape) == 4 else None for shape in shapes)
    if channels == _CENTERFACE_CHANNELS:
        heads = dict(zip(("heatmap", "scale", "offset"), names, strict=False))
        return CenterFaceDecode(classes=1, score_threshold=0.2, nms_threshold=0.3, **heads), {"scale": 1.0}
    found = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
    raise ModelError(
        f"{path}: no decoder for a detector with outputs {found}; supported from ONNX: CenterFace"
        " (heatmap, scale, offset, landmarks). Give other detectors as a PyTorch factory"
    )


def run_file(path: Path, image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Run a file without any of ONNX Runtime's optimisations on one batch of images of any size.

    Args:
        path: ONNX file.
        image: batch of images, ``[N, C, height, width]``.

    Returns:
        Output name -> values.

    Raises:
        ModelError: the file does not run on such images.
    """
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    # A file that was exported with a fixed size declares this size at every port.
    for port in (*model.graph.input, *model.graph.output):
        if port.name not in weights and port.type.tensor_type.HasField("shape"):
            for dim in port.type.tensor_type.shape.dim:
                dim.Clear()
    del model.graph.value_info[:]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, {session.get_inputs()[0].name: image})
    except Exception as error:
        raise ModelError(
            f"{path}: does not run on an image of shape {list(image.shape)}: {first_line(error)}"
        ) from error
    return dict(zip(names, outputs, strict=True))
