"""Sessions of ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import BackendError, first_line

__all__ = ["CPU", "Bound", "open_baked", "open_session", "quiet", "usual_threads"]

CPU = "CPUExecutionProvider"


def usual_threads() -> int:
    """Threads of a run where nobody says how many: one less than the cores, because decoding needs one."""
    return max(1, (os.cpu_count() or 2) - 1)


def quiet(threads: int) -> ort.SessionOptions:
    """Options of a session that prints errors alone, and runs on so many threads."""
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
    """A session, on the CPU if nothing else is said.

    Args:
        path: of the model.
        options: of the session.
        proto: what was made of the model and is run in its place.
        providers: as ONNX Runtime has them.
        settings: passed on to ONNX Runtime.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """
    try:
        return ort.InferenceSession(proto or str(path), options, providers=list(providers), **settings)
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {first_line(error)}") from error


def open_baked(path: Path, threads: int, *, prepack: bool) -> ort.InferenceSession:
    """A session of a graph that is optimised already.

    Args:
        path: of the graph.
        threads: of a run.
        prepack: whether kernels may pack weights, which copies them. Of a program, whose weights arrive as inputs,
            there is nothing to pack.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """
    options = quiet(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return open_session(path, options)


class Bound:
    """A program with the addresses of one model; of a graph that holds its weights, none."""

    def __init__(self, session: ort.InferenceSession, weights: Sequence[ort.OrtValue] = ()) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.outputs = [port.name for port in session.get_outputs()]
        # Weights are a program's last inputs; its first are the model's own.
        ports = session.get_inputs()
        for port, value in zip(ports[len(ports) - len(weights) :], weights, strict=True):
            self.binding.bind_ortvalue_input(port.name, value)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in inputs.items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.outputs:
            # Bound anew each time: shapes follow the batch.
            self.binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(self.binding)
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu(), strict=True))
