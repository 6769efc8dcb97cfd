"""Programs that run on this machine's CPU while the other programs of their model run on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..ort.session import open_session, quiet

__all__ = ["OnHost"]


class OnHost:
    """Program without weights that the device's library refuses, and that ONNX Runtime runs on the CPU instead.

    Args:
        path: ONNX file of the stage.
        threads: maximum number of threads that one run may use.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_session(path, quiet(threads))
        self._outputs = [port.name for port in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the program on the CPU, and return the outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
