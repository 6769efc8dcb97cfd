"""ONNX Runtime's optimisation of a graph for this CPU, done once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.onnx_wire import DTYPES, Message, tensor_array
from ...bundles.program import Program, read_model, split_model
from ...errors import BackendError
from .session import open_session, quiet

__all__ = ["DISABLED_OPTIMIZERS", "optimise", "optimise_int8"]

DISABLED_OPTIMIZERS = [
    # Fuses Pad(0) -> MaxPool into padding with -inf, which is another function (Tiny-YOLOv3: error 4e-3).
    "Pad_Fusion",
    # These would scale a shared kernel by a private factor. What may be folded, the compiler has folded.
    "ConvBNFusion",
    "ConvMulFusion",
    "ConvAddFusion",
    # Takes a layer that was left in float32 between int8 ones for int8, with one scale for all of its kernel.
    "WeightBiasQuantization",
]


def optimise(path: Path, proto: bytes | None, folder: Path) -> tuple[Program, list[NDArray[Any]]]:
    """Let ONNX Runtime optimise a graph for this CPU, and split the result.

    Args:
        path: of an ONNX file.
        proto: what was made of it and is optimised in its place; its weights may still lie beside the file.
        folder: for files that are gone afterwards.

    Returns:
        The program, and copies of its weights in its order.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """
    model = read_model(_optimised(path, proto, folder, outside=1024))
    program = split_model(model)
    external = folder / "optimised.bin"
    data = np.memmap(external, np.uint8, "r") if external.exists() and external.stat().st_size else None
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = [_values(initializers[name], data) for name in program.weights]
    del data
    external.unlink(missing_ok=True)
    return program, arrays


def optimise_int8(path: Path, proto: bytes, folder: Path) -> bytes:
    """Let ONNX Runtime make integer arithmetic of a graph with uint8 activations.

    Args:
        path, proto, folder: see :func:`optimise`.

    Returns:
        A graph with its weights inside.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """
    data = _optimised(path, proto, folder, outside=1 << 40)
    (folder / "optimised.bin").unlink(missing_ok=True)
    return data


def _optimised(path: Path, proto: bytes | None, folder: Path, outside: int) -> bytes:
    """A graph, whose initializers of so many bytes and more are in ``optimised.bin``.

    Without that file ONNX Runtime would leave in the bundle's blob what it did not change.
    """
    made = folder / "optimised.onnx"
    options = quiet(threads=1)
    options.optimized_model_filepath = str(made)
    settings = {
        "optimized_model_external_initializers_file_name": "optimised.bin",
        "optimized_model_external_initializers_min_size_in_bytes": str(outside),
        # A message has no folder in which its weights could be.
        "model_external_initializers_file_folder_path": str(path.parent),
    }
    for name, value in settings.items():
        options.add_session_config_entry(f"session.{name}", value)
    open_session(path, options, proto=proto, disabled_optimizers=DISABLED_OPTIMIZERS)
    data = made.read_bytes()
    made.unlink()
    return data


def _values(tensor: Message, data: NDArray[np.uint8] | None) -> NDArray[Any]:
    """A copy of an initializer's values."""
    if tensor.data_location != 1:
        return np.array(tensor_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place.get("offset", 0)), int(place.get("length", 0))
    if data is None or offset + length > data.size:
        raise BackendError(f"weight {tensor.name}: ONNX Runtime did not write its values")
    return np.array(data[offset : offset + length].view(DTYPES[tensor.data_type]).reshape(tuple(tensor.dims)))
