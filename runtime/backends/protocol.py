"""Interface of a backend, and of the class that opens it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from ...bundles.reader import Bundle
    from ..memory.arena import ArenaStats, Loading

__all__ = ["Backend", "BackendOpener", "BackendOptions"]


class Backend(Protocol):
    """Programs and an arena on one device: makes models resident and runs their stages."""

    name: str
    threads: int
    """Threads that one run may use."""
    loading: Loading
    """Settings of how weights are loaded."""

    @property
    def folder(self) -> Path:
        """Device cache of the bundle: what was made from the bundle for this device."""
        ...

    @property
    def segments(self) -> Mapping[str, int]:
        """Segments that are swapped, with their bytes."""
        ...

    @property
    def budget(self) -> int:
        """Bytes of weights that may be in memory at once."""
        ...

    @property
    def room(self) -> int:
        """Bytes of the budget that segments may fill. Private copies of weights take the rest."""
        ...

    @property
    def stats(self) -> ArenaStats:
        """Counters of loads and evictions so far."""
        ...

    def segments_of(self, model: str) -> tuple[str, ...]:
        """Return the segments that must be in memory while a model runs."""
        ...

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        """Evict and then load segments while the caller goes on.

        Args:
            load: segments to load.
            evict: segments to evict first; no active model may hold one of them.
            done: called when all loads are over, on any thread.

        Raises:
            BackendError: the segments to be loaded do not fit; nothing was done.
        """
        ...

    def loaded(self, segments: Sequence[str]) -> bool:
        """Return whether no model must wait for any of the segments."""
        ...

    def evict(self) -> None:
        """Evict all segments that no active model holds."""
        ...

    def activate(self, model: str) -> None:
        """Swap a model in: make its segments resident and its programs ready to run. Idempotent.

        Raises:
            BackendError: the model's segments do not fit or cannot be loaded, or a program cannot be opened.
        """
        ...

    def release(self, model: str) -> None:
        """Allow the model's segments to be evicted."""
        ...

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a stage of an active model.

        Args:
            model: name in the manifest.
            stage: ``main`` or the name of another stage of the model.
            inputs: arrays by input name, contiguous, with the dtypes that the manifest states.

        Returns:
            Arrays by output name.

        Raises:
            BackendError: the device refused or failed.
        """
        ...

    def close(self) -> None:
        """Give everything back. The backend cannot be used any more."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class BackendOptions:
    """Options with which any backend is opened."""

    memory: str | int
    """Budget for weights, as :func:`gemel.bundles.budget.parse_memory` returns it."""
    threads: int
    """Threads that one run may use."""
    loading: Loading
    """Settings of how weights are loaded."""
    progress: Callable[[str], None]
    """Called with each model that is prepared for the device."""


class BackendOpener(Protocol):
    """Class of a backend, as the registry uses it."""

    def open(self, bundle: Bundle, name: str, options: BackendOptions) -> Backend:
        """Open the backend on the device that this machine has.

        Args:
            bundle: an open bundle.
            name: name under which the class is registered.
            options: options of the user, checked.

        Raises:
            InputError: the budget is too small.
            BackendError: the device is missing or cannot run the bundle.
        """
        ...
