"""Registry of backends: finds the class of a backend by name, and imports the class only when the backend is opened.

A new backend is one file in this folder, with a class that opens as :class:`.protocol.BackendOpener` says, and one line
in :data:`BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ...bundles.budget import parse_memory
from ...errors import InputError
from ..memory.loading import WARM, Loading
from .protocol import Backend, BackendOpener, BackendOptions

if TYPE_CHECKING:
    from ...bundles.reader import Bundle

__all__ = ["BACKENDS", "check_backend", "is_prepared", "open_backend"]

BACKENDS = {
    "ort-cpu": ".ort_cpu:OrtCpu",
    "auto-cpu": ".auto_cpu:AutoCpu",
    "ort-cuda": ".ort_cuda:OrtCuda",
    "tensorrt": ".tensorrt:TensorRt",
    "tensorrt-rtx": ".tensorrt:TensorRt",
    "openvino": ".openvino:OpenVino",
    "openvino-fast": ".openvino:OpenVinoFast",
    "ort-sessions": ".ort_sessions:OrtSessions",
}
"""Name of a backend -> its class, as ``module:class``; a leading dot stands for ``gemel.runtime.backends``.

``ort-sessions`` is a baseline that the other backends are compared with."""


def check_backend(name: str) -> None:
    """Check that a backend with this name exists, before any work is done for the backend.

    Raises:
        InputError: the name is not one of :data:`BACKENDS`.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is not available; this version has: {', '.join(BACKENDS)}")


def open_backend(
    bundle: Bundle,
    name: str | None = None,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
    loading: Loading = WARM,
    progress: Callable[[str], None] = lambda model: None,
    before: Backend | None = None,
) -> Backend:
    """Open a backend for a bundle, and make the device cache if it is missing.

    Args:
        bundle: an open bundle.
        name: name of the backend; the backend that the workload names when left out.
        memory: memory setting that gives the budget for weights, see :mod:`gemel.bundles.budget`; the bundle's own
            setting when left out.
        threads: maximum number of threads that one run may use. When left out, one less than the number of cores,
            because decoding needs a core.
        loading: settings of how weights are loaded.
        progress: function called with the name of each model that is prepared for the device.
        before: backend that runs now, and whose place the new one takes.

    Raises:
        InputError: the backend is unknown, or the memory setting is not allowed or too small.
        BackendError: the device is missing or cannot run the bundle.
    """
    name = name or bundle.manifest.device.backend
    check_backend(name)
    setting = bundle.manifest.device.memory if memory is None else memory
    try:
        size = parse_memory(setting)
    except ValueError as error:
        raise InputError(f"memory: {setting!r} is not allowed: {error}") from error
    # Imports ONNX Runtime, as every backend does.
    from ..ort.session import usual_threads

    options = BackendOptions(size, threads or usual_threads(), loading, progress, before)
    return _find(name).open(bundle, name, options)


def is_prepared(bundle: Bundle, name: str) -> bool:
    """Return whether a bundle's device cache is complete, so that opening the bundle makes nothing."""
    return _find(name).is_prepared(bundle)


def _find(name: str) -> BackendOpener:
    """Import and return the class of the backend with a given name."""
    module, title = BACKENDS[name].split(":")
    return cast(BackendOpener, getattr(import_module(module, __package__), title))
