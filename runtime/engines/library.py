"""TensorRT and TensorRT for RTX: two libraries with the same API."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ...errors import BackendError, InputError, install_hint

__all__ = ["LIBRARIES", "Library", "find_library"]

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend (also the name of the extra that installs the library) -> Python module of the library."""


@dataclass(frozen=True)
class Library:
    """TensorRT or TensorRT for RTX, imported.

    Attributes:
        backend: name of the backend by which users choose the library.
        module: Python module of the library. Gemel uses only what TensorRT 10.3 and 11 have in common.
    """

    backend: str
    module: Any

    @property
    def version(self) -> str:
        """Version of TensorRT, or of TensorRT for RTX, such as ``10.3.0``."""
        return str(self.module.__version__)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities, such as ``sm86``, that engines can be built for on a machine without such a device.

        Empty for TensorRT itself, which builds only for the device of the machine.
        """
        known = getattr(self.module, "ComputeCapability", None)
        names = known.__members__ if known is not None else ()
        return tuple(sorted((name.lower() for name in names if name.startswith("SM")), key=lambda name: int(name[2:])))

    def logger(self) -> Any:
        """Return the logger for all objects of the TensorRT library. It prints nothing and keeps errors in ``errors``.

        There is one logger until the process ends. The library uses the first logger that it is given while any object
        made with it exists, ignores all others, and crashes when that first logger is deleted.
        """
        return _logger(self.module)

    def refusal(self, reasons: Sequence[str]) -> str:
        """Return an error message that says that TensorRT refused something, with the first of ``reasons``."""
        reason = " ".join(reasons[0].split()) if reasons else "it does not say why"
        return f"{self.backend} {self.version} refuses it: {reason}"

    def check_targets(self, targets: Sequence[str]) -> None:
        """Check that TensorRT, or TensorRT for RTX, can build engines for some compute capabilities on this machine.

        Raises:
            InputError: an engine for one of the targets cannot be built here.
        """
        own = ", ".join(self.targets)
        what = f"builds for {own} here; engines for other devices" if own else "builds only for its own device; engines"
        for target in targets:
            if target not in self.targets:
                raise InputError(
                    f"target {target!r}: {self.backend} {self.version} {what} are built on the device, when gemel-run"
                    " --backend tensorrt first runs the bundle there: leave the target out"
                )


def find_library(backend: str) -> Library:
    """Import and return the library of a backend: TensorRT or TensorRT for RTX.

    Raises:
        BackendError: the library is not installed, or cannot be loaded.
    """
    module = LIBRARIES[backend]
    try:
        return Library(backend, importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendError(f"{backend}: cannot be loaded: {error}") from error
        jetson = " (on a Jetson it comes with JetPack)" if backend == "tensorrt" else ""
        raise BackendError(
            f"{backend} is not installed: {install_hint(backend)}{jetson}; --backend ort-cpu runs without"
        ) from error
    except (ImportError, OSError) as error:
        raise BackendError(f"{backend}: cannot be loaded: {error}") from error


@cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Logger()
