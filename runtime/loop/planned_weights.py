"""Weights during a run: transfers of the plan, as they are asked of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ...errors import BackendError
from ..planning.conductor import Link
from ..planning.residency import Transfer
from ..planning.review import Review
from .plan_input import Memory

__all__ = ["PlannedWeights"]

_log = logging.getLogger(__name__)

_RETRY_MS = 1.0
"""Milliseconds until memory is asked again for weights that are later than their profile says."""


class PlannedWeights:
    """Weights that are loaded and evicted as a plan says, and the times at which they are expected.

    When memory refuses a transfer, the plan no longer knows what is in memory. From then on, until the next plan,
    transfers are left out and every model loads its own weights when it runs.

    Args:
        memory: memory that segments are loaded into.
        review: the profile in force; told when memory refuses a transfer.
        loaded: called when a transfer has ended, on whatever thread.
    """

    def __init__(self, memory: Memory, review: Review, loaded: Callable[[], None]) -> None:
        self._memory, self._review, self._loaded = memory, review, loaded
        self._link = Link()

    def transfer(self, transfer: Transfer, now: float) -> None:
        """Ask memory for a transfer at ``now`` milliseconds, and note when its segments are expected."""
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
        """Evict all weights."""
        self._memory.evict()
        self._link.clear()

    def due(self, query: str, now: float) -> float:
        """Return when a query's weights are expected, in milliseconds; at most ``now`` if they are in memory."""
        if self._review.lost:
            # The model loads its own weights when it runs.
            return 0.0
        segments = self._review.profile.segments_of(query)
        due = self._link.due(segments)
        return min(due, now) if self._memory.loaded(segments) else max(due, now + _RETRY_MS)
