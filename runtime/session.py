"""Sessions of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import BackendError, first_line

__all__ = ["CPU", "open_session", "quiet"]

CPU = "CPUExecutionProvider"


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
