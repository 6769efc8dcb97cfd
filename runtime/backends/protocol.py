"""Interface of a backend, and of the class that opens a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from ...bundles.reader import Bundle
    from ..memory.arena_stats import ArenaStats
    from ..memory.loading import Loading

__all__ = ["Backend", "BackendOpener", "BackendOptions", "StemTimes"]


class StemTimes(NamedTuple):
    """Run times of a model whole and in two parts, in milliseconds for one image."""

    main_ms: float
    """Milliseconds of a run of the whole model on one image."""
    stem_ms: float
    """Milliseconds of a run of a model's stem on one image: the first part, which other models may have in common."""
    rest_ms: float
    """Milliseconds of a run on one image of what follows a model's stem."""


class Backend(Protocol):
    """Interface to programs and an arena on one device: makes models resident and runs their stages."""

    name: str
    threads: int
    """Maximum number of CPU threads that one run may use."""
    loading: Loading
    """Settings of how weights are loaded."""

    @property
    def folder(self) -> Path:
        """Folder of the device cache: files that were made from the bundle for this device."""
        ...

    @property
    def segments(self) -> Mapping[str, int]:
        """Segment -> bytes, for the segments that can be loaded and evicted."""
        ...

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """Segment that is computed -> segments that must be in memory when it is loaded."""
        ...

    @property
    def residents(self) -> frozenset[str]:
        """Segments that are in memory now or are being loaded. May be read on any thread."""
        ...

    @property
    def budget(self) -> int:
        """Maximum bytes of weights that may be in memory at once."""
        ...

    @property
    def room(self) -> int:
        """Bytes of the budget that segments may fill. Private copies of weights take the rest of the budget."""
        ...

    @property
    def stats(self) -> ArenaStats:
        """Counters of loads and evictions since the backend was opened."""
        ...

    @property
    def stems(self) -> Mapping[str, StemTimes]:
        """Model -> run times, for the models whose stage ``main`` may also be run as the stages ``stem`` and ``rest``.

        A backend that runs no stems has none.
        """
        ...

    def segments_of(self, model: str) -> tuple[str, ...]:
        """Return the segments that must be in memory while a model runs."""
        ...

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        """Evict and then load segments while the caller goes on.

        Args:
            load: segments to load.
            evict: segments to evict first; no active model may hold one of them.
            done: function called without arguments when all loads have ended, on any thread. Not called if nothing has
                to be loaded.

        Raises:
            BackendError: an active model holds a segment to be evicted, the segments to be loaded do not fit, or one of
                them is computed from a segment that would not be in memory. Then nothing was evicted or loaded.
        """
        ...

    def loaded(self, segments: Sequence[str]) -> bool:
        """Return whether a model can use the segments without waiting for a load."""
        ...

    def evict(self) -> None:
        """Evict from memory all segments that no active model holds."""
        ...

    def prepare(self, model: str) -> None:
        """Open a model's programs, so that its first run need not wait for this.

        Raises:
            BackendError: a program cannot be opened, or the model's segments do not fit.
        """
        ...

    def take_over(self, before: Backend) -> None:
        """Take the place of the backend that this one was opened beside; no model of either may be active.

        Weights that both have stay in memory. The caller closes the other backend afterwards.
        """
        ...

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights that stay in memory when this backend takes the place of another one."""
        ...

    def activate(self, model: str) -> None:
        """Swap a model in: make its segments resident and its programs ready to run. Idempotent.

        Raises:
            BackendError: the model's segments do not fit or cannot be loaded, or a program cannot be opened.
        """
        ...

    def release(self, model: str) -> None:
        """Allow a model's segments to be evicted."""
        ...

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a stage of an active model.

        Args:
            model: name of the model in the manifest.
            stage: ``main`` or the name of another stage of the model; also ``stem`` or ``rest`` for a model in
                :attr:`stems`.
            inputs: arrays by input name, contiguous, with the dtypes that the manifest states.

        Returns:
            Arrays by output name.

        Raises:
            BackendError: the model is not active, or the device refused or failed to run the stage.
        """
        ...

    def batch_limit(self, model: str) -> int:
        """Return the maximum number of frames that one run of a model's stage ``main`` can take on this backend.

        It is 1 where the backend's programs have a fixed number of frames. Whether the model itself takes more than one
        frame is :attr:`gemel.bundles.manifest.Stage.takes_batches`.
        """
        ...

    def close(self) -> None:
        """Close the backend: free its memory and its device. The backend cannot be used afterwards."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class BackendOptions:
    """Options with which any backend is opened."""

    memory: str | int
    """Memory setting that gives the budget for weights, as :func:`gemel.bundles.budget.parse_memory` returns it."""
    threads: int
    """Maximum number of CPU threads that one run of a model may use."""
    loading: Loading
    """Settings of how weights are loaded."""
    progress: Callable[[str], None]
    """Function called with the name of each model that is prepared for the device."""
    before: Backend | None = None
    """Backend that runs now, and whose place the new backend takes; the two may share weights and programs."""


class BackendOpener(Protocol):
    """Class that opens a backend, as the registry expects it."""

    def is_prepared(self, bundle: Bundle) -> bool:
        """Return whether a bundle's device cache is complete, so that opening the bundle makes nothing."""
        ...

    def open(self, bundle: Bundle, name: str, options: BackendOptions) -> Backend:
        """Open the backend on the device that this machine has.

        Args:
            bundle: an open bundle.
            name: name under which the class is registered.
            options: options that the user chose, already checked.

        Raises:
            InputError: the budget is too small.
            BackendError: the device is missing or cannot run the bundle.
        """
        ...
