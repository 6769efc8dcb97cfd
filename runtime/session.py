"""Sessions of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import BackendError, first_line

__all__ = ["open_session"]


def open_session(path: Path, options: ort.SessionOptions, **settings: Any) -> ort.InferenceSession:
    """A session on the CPU.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **settings)
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {first_line(error)}") from error
