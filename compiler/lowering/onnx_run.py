"""Runs of ONNX files as they are, without any of ONNX Runtime's optimisations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import ModelError, first_line
from ...workload.document.schema import Input
from .onnx_file import open_onnx
from .onnx_limits import limited_memory
from .onnx_ports import ImagePort, feeds_of, find_image_port

__all__ = ["run_file", "run_on_port"]


def run_file(path: Path, image: NDArray[np.float32], outputs: Iterable[str] = ()) -> dict[str, NDArray[Any]]:
    """Run an ONNX file on one batch of images of any size, and return its outputs.

    Args:
        path: ONNX file.
        image: batch of images, ``[N, C, height, width]``, as the runtime prepares them. They are transposed and
            converted as the file's input needs; the file's other inputs get their constants.
        outputs: names of the outputs to compute; all if empty.

    Returns:
        Output name -> values.

    Raises:
        ModelError: the file does not run on such images.
    """
    height, width = image.shape[2:]
    color = "gray" if image.shape[1] == 1 else None
    port = find_image_port(open_onnx(path), path, Input(size=(height, width), color=color))
    return run_on_port(path, port, image, outputs)


def run_on_port(
    path: Path, port: ImagePort, image: NDArray[np.float32], outputs: Iterable[str] = ()
) -> dict[str, NDArray[Any]]:
    """Run an ONNX file on one batch of images, given its image input, and return the outputs by name.

    Arguments are those of :func:`run_file`, and ``port`` is the result of
    :func:`~gemel.compiler.lowering.onnx_ports.find_image_port`. Weights in other files are read by ONNX Runtime itself,
    so models of more than 2 GB run.
    """
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    # A file that was exported with a fixed size declares this size at every port.
    for each in (*model.graph.input, *model.graph.output):
        if each.name not in weights and each.type.tensor_type.HasField("shape"):
            for dim in each.type.tensor_type.shape.dim:
                dim.Clear()
    del model.graph.value_info[:]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # One run does not repay packing, which copies the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # A graph that is passed as bytes has no folder: ONNX Runtime must be told where its weights lie.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.absolute().parent)
    )
    try:
        with limited_memory(_weight_bytes(model)):
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            names = list(outputs) or [output.name for output in session.get_outputs()]
            values = session.run(names, feeds_of(port, image))
    except Exception as error:
        raise ModelError(
            f"{path}: does not run on an image of shape {list(image.shape)}: {first_line(error)}"
        ) from error
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, np.ndarray):
            raise ModelError(f"{path}: output {name} is a {type(value).__name__}, not a tensor; outputs: picks others")
    return dict(zip(names, values, strict=True))


def _weight_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of an ONNX model's initializers, in the file and outside."""
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        else tensor.ByteSize()
        for tensor in model.graph.initializer
    )
