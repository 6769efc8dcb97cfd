"""Backends: what runs programs on a device. One file each, imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from ...bundles.budget import parse_memory
from ...bundles.reader import Bundle
from ...errors import InputError
from ..memory.arena import WARM, ArenaStats, Loading

__all__ = ["NAMES", "Backend", "check_backend", "open_backend"]

NAMES = ("ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "ort-sessions")
"""The backends that this version has; the last one is there to be compared with."""


class Backend(Protocol):
    """Holds programs and an arena; makes models resident and runs their stages."""

    name: str
    threads: int
    """Of a run."""
    loading: Loading
    """How weights come."""

    @property
    def folder(self) -> Path:
        """The device cache of the bundle: what was made of it for this device."""
        ...

    @property
    def segments(self) -> Mapping[str, int]:
        """Bytes of every segment that is swapped."""
        ...

    def segments_of(self, model: str) -> tuple[str, ...]:
        """What must be in memory while a model runs, beside what always is."""
        ...

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        """Drop and then load segments while the caller goes on.

        Args:
            load: segments that are to come.
            evict: segments that go before; none that an active model holds.
            done: called when that is over, on whatever thread.

        Raises:
            BackendError: what is to come does not fit; nothing was done.
        """
        ...

    def loaded(self, segments: Sequence[str]) -> bool:
        """Whether all of them are in memory."""
        ...

    def evict(self) -> None:
        """Drop all segments that no active model holds."""
        ...

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
        """Bytes of weights that may be in memory at once."""
        ...

    @property
    def room(self) -> int:
        """The part of the budget that segments may fill."""
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


def check_backend(name: str) -> None:
    """Refuse a backend that does not exist, before any work is done for it.

    Raises:
        InputError: it is not one of :data:`NAMES`.
    """
    if name not in NAMES:
        raise InputError(f"backend {name!r} is not available; this version has: {', '.join(NAMES)}")


def open_backend(
    bundle: Bundle,
    name: str | None = None,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
    loading: Loading = WARM,
    progress: Callable[[str], None] = lambda model: None,
) -> Backend:
    """Open the backend of a bundle, making its device cache where that is missing.

    Args:
        bundle: an open bundle.
        name: backend; the one that the workload names when left out.
        memory: budget for weights, see :mod:`gemel.bundles.budget`; the bundle's own setting when left out.
        threads: threads of a run; one less than the cores when left out, because decoding needs one.
        loading: how weights come into memory.
        progress: called with each model that is prepared for the device.

    Raises:
        InputError: an unknown backend, or a memory setting that is not allowed or too small.
        BackendError: a device that cannot run the bundle.
    """
    name = name or bundle.manifest.device.backend
    check_backend(name)
    setting = bundle.manifest.device.memory if memory is None else memory
    try:
        size = parse_memory(setting)
    except ValueError as error:
        raise InputError(f"memory: {setting!r} is not allowed: {error}") from error
    from ..ort.session import usual_threads

    threads = threads or usual_threads()
    if name == "ort-sessions":
        from .ort_sessions import OrtSessions

        return OrtSessions(bundle, memory=size, threads=threads, loading=loading, progress=progress)
    if name != "ort-cpu":
        return _on_card(bundle, name, size, threads, loading, progress)
    from .ort_cpu import OrtCpu

    return OrtCpu(bundle, memory=size, threads=threads, loading=loading, progress=progress)


def _on_card(
    bundle: Bundle,
    name: str,
    memory: str | int,
    threads: int,
    loading: Loading,
    progress: Callable[[str], None],
) -> Backend:
    from ..engines.library import LIBRARIES, find_library

    # What is missing is said before a card is touched.
    library = find_library(name) if name in LIBRARIES else None
    from ..device.cuda import CudaDevice

    device = CudaDevice()
    try:
        if library is None:
            from .ort_cuda import OrtCuda

            return OrtCuda(bundle, device, memory=memory, threads=threads, loading=loading)
        from .tensorrt import TensorRt

        return TensorRt(
            bundle,
            device,
            library,
            memory=memory,
            threads=threads,
            loading=loading,
            progress=lambda model, number, count: progress(model),
        )
    except BaseException:
        device.close()
        raise
