"""Backends: what runs programs on a device. One file each, imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import BackendError
from ..arena import ArenaStats
from ..bundle import Bundle

__all__ = ["Backend", "open_backend"]


class Backend(Protocol):
    """Holds programs and an arena; makes models resident and runs their stages."""

    name: str

    def activate(self, model: str) -> None:
        """Swap a model in: its segments become resident and its programs' weights are bound. Idempotent."""
        ...

    def release(self, model: str) -> None:
        """Allow the model's segments to be evicted."""
        ...

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a stage of an active model.

        Args:
            model: name in the manifest.
            stage: ``main`` or another stage of it.
            inputs: by name, contiguous, in the dtype that the manifest states.

        Returns:
            Outputs by name.

        Raises:
            BackendError: the device refused or failed.
        """
        ...

    @property
    def budget(self) -> int:
        """Bytes of weights that may be resident at once."""
        ...

    @property
    def stats(self) -> ArenaStats:
        """What was loaded and evicted so far."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_backend(
    bundle: Bundle,
    name: str | None = None,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda model: None,
) -> Backend:
    """Open the backend of a bundle, making its device cache where that is missing.

    Args:
        bundle: an open bundle.
        name: backend; the one that the workload names when left out.
        memory: budget for weights, see :mod:`gemel.runtime.memory`; the bundle's own setting when left out.
        threads: threads of a run; one less than the cores when left out, because decoding needs one.
        progress: called with each model that is prepared for the device.

    Raises:
        BackendError: an unknown backend, or a device that cannot run the bundle.
    """
    name = name or bundle.manifest.device.backend
    if name == "ort-cpu":
        from .ort_cpu import OrtCpu

        setting = bundle.manifest.device.memory if memory is None else memory
        return OrtCpu(bundle, memory=setting, threads=threads, progress=progress)
    raise BackendError(f"backend {name!r} is not available; this version has: ort-cpu")
