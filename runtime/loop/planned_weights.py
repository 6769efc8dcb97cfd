"""Weights during a run: the loads and evictions of a plan, and the times at which weights are expected in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ...errors import BackendError
from ..planning.conductor import Link
from ..planning.residency import Transfer
from ..planning.review import Review
from .plan_input import Memory

__all__ = ["PlannedWeights"]

_log = logging.getLogger(__name__)

_RETRY_MS = 1.0
"""Milliseconds between two checks whether weights are in memory, if their load takes longer than the profile says."""


class PlannedWeights:
    """Weights that are loaded and evicted as a plan says, and the times at which the weights are expected in memory.

    When memory refuses a transfer, the plan no longer knows what is in memory. From then on, until the next plan,
    transfers are left out and every model loads its own weights when it runs.

    Args:
        memory: memory that segments are loaded into.
        review: observations of the run, in which a refused transfer is noted.
        loaded: function called without arguments when a transfer has ended, on any thread.
    """

    def __init__(self, memory: Memory, review: Review, loaded: Callable[[], None]) -> None:
        self._memory, self._review, self._loaded = memory, review, loaded
        self._link = Link()

    def transfer(self, transfer: Transfer, now: float) -> None:
        """Request a transfer from memory at ``now`` milliseconds, and note when its segments are expected."""
        if self._review.lost or not (transfer.load or transfer.evict):
            return
        try:
            self._memory.prefetch(transfer.load, transfer.evict, self._loaded)
        except BackendError as error:
            _log.warning("%s; all weights are loaded again", error)
            self._review.lost = True
            return
        self._link.transfer(self._review.profile, transfer, now)

    def clear(self) -> None:
        """Evict all weights from memory."""
        self._memory.evict()
        self._link.clear()

    @property
    def kept(self) -> tuple[str, ...]:
        """Segments whose loads a plan requested, and that are in memory or still being loaded."""
        return self._link.kept

    def due(self, queries: Iterable[str], now: float) -> float:
        """Return the time in milliseconds at which the weights of all the given queries are expected in memory.

        The time is 0 if these weights are in memory already, and later than ``now`` if they are not.
        """
        if self._review.lost:
            # The model loads its own weights when it runs.
            return 0.0
        segments = [segment for query in queries for segment in self._review.profile.segments_of(query)]
        return 0.0 if self._memory.loaded(segments) else max(self._link.due(segments), now + _RETRY_MS)
