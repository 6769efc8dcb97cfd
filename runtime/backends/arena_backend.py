"""Base class of the backends that keep weights in an arena."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from ...bundles.reader import Bundle
from ...errors import BackendError
from ..memory.arena import Arena
from ..memory.arena_stats import ArenaStats
from .protocol import Backend, StemTimes

__all__ = ["ArenaBackend", "images_within"]

_A = TypeVar("_A", bound=Arena)
_B = TypeVar("_B", bound="ArenaBackend[Any]")


class ArenaBackend(ABC, Generic[_A]):
    """Base class with the methods of :class:`gemel.runtime.backends.Backend` that only pass calls on to an arena.

    Args:
        arena: arena that holds the weights. The backend closes the arena.
    """

    def __init__(self, arena: _A) -> None:
        self.arena = arena
        self._active: set[str] = set()

    @classmethod
    def is_prepared(cls, bundle: Bundle) -> bool:
        """Return whether a bundle's device cache is complete, so that opening the bundle makes nothing."""
        return False

    @abstractmethod
    def segments_of(self, model: str) -> tuple[str, ...]: ...

    @property
    def segments(self) -> Mapping[str, int]:
        return self.arena.sizes

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        return self.arena.sources

    @property
    def residents(self) -> frozenset[str]:
        return frozenset(self.arena.residents)

    @property
    def room(self) -> int:
        return self.arena.budget

    @property
    def stats(self) -> ArenaStats:
        return self.arena.stats

    @property
    def stems(self) -> Mapping[str, StemTimes]:
        return {}

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = lambda: None) -> None:
        self.arena.prefetch(load, evict, done)

    def loaded(self, segments: Sequence[str]) -> bool:
        return self.arena.loaded(segments)

    def evict(self) -> None:
        self.arena.evict()

    def prepare(self, model: str) -> None:
        self.activate(model)
        self.release(model)

    def batch_limit(self, model: str) -> int:
        """Return 1, the maximum number of frames of one run. Backends that can run several frames override this."""
        return 1

    def take_over(self, before: Backend) -> None:
        """Take the place of the backend that ran before. Nothing is shared: weights are loaded again."""

    @property
    def kept_bytes(self) -> int:
        return 0

    def activate(self, model: str) -> None:
        if model not in self._active:
            self.arena.acquire(self.segments_of(model))
            self._active.add(model)

    def release(self, model: str) -> None:
        if model in self._active:
            self._active.remove(model)
            self.arena.release(self.segments_of(model))

    def close(self) -> None:
        self.arena.close()

    def __enter__(self: _B) -> _B:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_active(self, model: str, stage: str) -> None:
        """Check that a model is active before one of its stages is run.

        Raises:
            BackendError: the model is not active.
        """
        if model not in self._active:
            raise BackendError(f"model {model!r}, stage {stage!r}: not active; call activate() first")


def images_within(bundle: Bundle, model: str, pixels: int) -> int:
    """Return how many inputs of a model have at most ``pixels`` pixels together; at least 1."""
    height, width = bundle.manifest.models[model].input.size
    return max(1, pixels // (height * width))
