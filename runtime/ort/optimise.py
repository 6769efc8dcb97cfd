"""Optimisation of graphs for this CPU by ONNX Runtime, which returns optimised graphs so that they can be stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.onnx_wire import DTYPES, Message, tensor_array
from ...bundles.program import Program, read_model, split_model
from ...errors import BackendError
from ...memory_limit import limited_memory
from .session import open_session, quiet

__all__ = ["DISABLED_OPTIMIZERS", "optimise", "optimise_int8"]

DISABLED_OPTIMIZERS = [
    # Fuses Pad(0) -> MaxPool into padding with -inf, which is another function (Tiny-YOLOv3: error 4e-3).
    "Pad_Fusion",
    # These three scale a shared kernel by a private factor. The compiler has already folded what may be folded.
    "ConvBNFusion",
    "ConvMulFusion",
    "ConvAddFusion",
    # Quantizes a layer that was left in float32 between int8 layers, with one scale for the whole kernel.
    "WeightBiasQuantization",
]
"""Names of ONNX Runtime's optimisers that are turned off, because they change results or undo sharing."""


def optimise(path: Path, proto: bytes | None, folder: Path) -> tuple[Program, list[NDArray[Any]]]:
    """Let ONNX Runtime optimise a graph for this CPU, and split the result into program and weights.

    Args:
        path: an ONNX file of the bundle.
        proto: a graph that was converted from the file and is optimised instead; None to optimise the file itself. The
            graph's weights may lie in the file's folder.
        folder: folder for temporary files, which are deleted before returning.

    Returns:
        The program, and copies of its weights in the program's order.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    model = read_model(_optimised(path, proto, folder, outside=1024))
    external = folder / "optimised.bin"
    data = np.memmap(external, np.uint8, "r") if external.exists() and external.stat().st_size else None
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = split_model(model).weights
    for name in initializers.keys() - set(weights):
        # The program keeps these constants (index tables, masks, int32 biases), and optimised.bin is deleted.
        _put_inside(initializers[name], data)
    program = split_model(model)
    arrays = [_values(initializers[name], data) for name in program.weights]
    del data
    external.unlink(missing_ok=True)
    return program, arrays


def optimise_int8(path: Path, proto: bytes, folder: Path) -> bytes:
    """Let ONNX Runtime turn a graph with uint8 activations into one that computes in integers.

    Args:
        path: an ONNX file of the bundle.
        proto: the graph with uint8 activations that was converted from the file.
        folder: folder for temporary files, which are deleted before returning.

    Returns:
        The optimised graph, with its weights inside.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    data = _optimised(path, proto, folder, outside=1 << 40)
    (folder / "optimised.bin").unlink(missing_ok=True)
    return data


def _optimised(path: Path, proto: bytes | None, folder: Path, outside: int) -> bytes:
    """Return a graph as ONNX Runtime optimises it; initializers of at least ``outside`` bytes go to ``optimised.bin``.

    Without that file, the graph would refer to the bundle's blob for weights that ONNX Runtime did not change.
    """
    made = folder / "optimised.onnx"
    options = quiet(threads=1)
    options.optimized_model_filepath = str(made)
    settings = {
        "optimized_model_external_initializers_file_name": "optimised.bin",
        "optimized_model_external_initializers_min_size_in_bytes": str(outside),
        # A graph that is passed as bytes has no folder: ONNX Runtime must be told where its weights lie.
        "model_external_initializers_file_folder_path": str(path.parent),
    }
    for name, value in settings.items():
        options.add_session_config_entry(f"session.{name}", value)
    weights = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    # A bundle may come from anywhere: constants that a graph computes may have any size.
    with limited_memory(weights):
        open_session(path, options, proto=proto, disabled_optimizers=DISABLED_OPTIMIZERS)
    data = made.read_bytes()
    made.unlink()
    return data


def _put_inside(tensor: Message, data: NDArray[np.uint8] | None) -> None:
    """Move an initializer's values from ``data``, the content of ``optimised.bin``, into the graph, if they lie there.

    Raises:
        BackendError: the values lie outside ``data``.
    """
    if tensor.data_location == 1:
        tensor.raw_data = _external(tensor, data).tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _values(tensor: Message, data: NDArray[np.uint8] | None) -> NDArray[Any]:
    """Return a copy of an initializer's values.

    Args:
        tensor: the initializer.
        data: content of ``optimised.bin``; None if there is no such file.

    Raises:
        BackendError: the values lie outside ``data``.
    """
    if tensor.data_location != 1:
        return np.array(tensor_array(tensor))
    return np.array(_external(tensor, data).view(DTYPES[tensor.data_type]).reshape(tuple(tensor.dims)))


def _external(tensor: Message, data: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return the bytes of an initializer that lies in ``data``, the content of ``optimised.bin``.

    Raises:
        BackendError: the values lie outside ``data``.
    """
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place.get("offset", 0)), int(place.get("length", 0))
    if data is None or offset + length > data.size:
        raise BackendError(f"weight {tensor.name}: ONNX Runtime did not write its values")
    return data[offset : offset + length]
