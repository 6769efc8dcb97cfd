"""ONNX Runtime sessions: how they are opened, and how a session is bound to the weights of one model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ...bundles.onnx_wire import external_locations
from ...errors import BackendError, first_line

__all__ = ["CPU", "Bound", "open_baked", "open_session", "quiet", "refuse_files_elsewhere", "usual_threads"]

CPU = "CPUExecutionProvider"
"""Name of ONNX Runtime's execution provider for CPUs."""


def usual_threads() -> int:
    """Return the default number of threads of a run: the number of cores less one, because decoding needs a core."""
    return max(1, (os.cpu_count() or 2) - 1)


def quiet(threads: int) -> ort.SessionOptions:
    """Return options for an ONNX Runtime session that prints only errors, and that runs on ``threads`` threads."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return options


def open_session(
    path: Path,
    options: ort.SessionOptions,
    *,
    proto: bytes | None = None,
    providers: Sequence[Any] = (CPU,),
    **settings: Any,
) -> ort.InferenceSession:
    """Open an ONNX Runtime session of a model, on the CPU by default.

    Args:
        path: file of the model, which error messages name.
        options: session options.
        proto: serialised model to open instead of the file.
        providers: execution providers, as ONNX Runtime takes them.
        settings: further arguments of ``onnxruntime.InferenceSession``.

    Raises:
        BackendError: ONNX Runtime refuses the model, or the model's weights lie outside the folder of ``path``.
    """
    refuse_files_elsewhere(path, path.read_bytes() if proto is None else proto)
    try:
        return ort.InferenceSession(proto or str(path), options, providers=list(providers), **settings)
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {first_line(error)}") from error


def refuse_files_elsewhere(path: Path, proto: bytes) -> None:
    """Refuse a model that names a file outside its folder: ONNX Runtime 1.22 would read it.

    Raises:
        BackendError: the model names such a file, or is no ONNX model.
    """
    try:
        locations = external_locations(proto)
    except DecodeError as error:
        raise BackendError(f"{path}: is not an ONNX model: {first_line(error)}") from error
    folder = path.parent.resolve()
    for location in locations:
        # A link in the folder of a bundle may lead anywhere.
        if not (folder / location).resolve().is_relative_to(folder):
            raise BackendError(f"{path}: its weights {location} lie outside the model's folder, and are not read")


def open_baked(path: Path, threads: int, *, prepack: bool, trial: bool = False) -> ort.InferenceSession:
    """Open an ONNX Runtime session of a graph that was baked (optimised for this CPU) before.

    Args:
        path: file of the graph.
        threads: maximum number of threads that one run may use.
        prepack: whether ONNX Runtime may re-arrange (prepack) constant weights, which makes a private copy of them. A
            program has no constant weights, because its weights are inputs.
        trial: whether the session is closed again soon. Its activations then have an arena of their own, which is freed
            with it; the arena that all other sessions share never gets smaller.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """
    options = quiet(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.use_env_allocators", "0" if trial else "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return open_session(path, options)


class Bound:
    """Session that is bound to the weight addresses of one model.

    Args:
        session: a session of a program, or of a graph that holds its weights.
        weights: weights of the model in the program's order; none for a graph that holds its weights.
    """

    def __init__(self, session: ort.InferenceSession, weights: Sequence[ort.OrtValue] = ()) -> None:
        self.session = session
        # ONNX Runtime 1.22 binds an address and does not keep the memory behind it.
        self.weights = tuple(weights)
        self.binding = session.io_binding()
        self.outputs = [port.name for port in session.get_outputs()]
        # Weights are a program's last inputs; its first are the model's own.
        ports = session.get_inputs()
        for port, value in zip(ports[len(ports) - len(weights) :], weights, strict=True):
            self.binding.bind_ortvalue_input(port.name, value)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the session on inputs (name -> array), and return output name -> array in this machine's memory."""
        for name, array in inputs.items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.outputs:
            # Outputs are bound before every run, because their shapes depend on the batch.
            self.binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(self.binding)
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu(), strict=True))
