"""Counters of one query's frames, answers and failures during a run."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from ..feeds import Feed
from .summary import Latency, QueryStats

__all__ = ["QueryCounters"]

_LATENCIES = 100_000
"""Maximum number of newest latencies to keep for a query: a run of days would fill the memory."""


@dataclass(slots=True, eq=False)
class QueryCounters:
    """Counts of answers and failures, and latencies, of one query during a run."""

    processed: int = 0
    """Number of frames that the query answered."""
    errors: int = 0
    """Number of frames on which the query failed."""
    failures_in_a_row: int = 0
    """Number of the query's failures since its last answer."""
    given_up: int = 0
    """Number of times that the query was given up."""
    last_error: str | None = None
    """Message of the query's newest failure; None if it never failed."""
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Milliseconds from a frame's arrival to its result, for the query's newest answers; in no order."""

    def count_answer(self, latency_ms: float) -> None:
        """Count a frame that the query answered ``latency_ms`` milliseconds after its arrival."""
        self.failures_in_a_row = 0
        if len(self.latencies) < _LATENCIES:
            self.latencies.append(latency_ms)
        else:
            self.latencies[self.processed % _LATENCIES] = latency_ms
        self.processed += 1

    def count_failure(self, message: str) -> None:
        """Count a frame on which the query failed."""
        self.errors += 1
        self.failures_in_a_row += 1
        self.last_error = message

    def stats(self, feed: Feed, *, gave_up: bool, paused: bool = False) -> QueryStats:
        """Return the statistics of the query for the run's summary.

        Args:
            feed: feed of the query. All frames that the feed delivered count: a frame without an answer was skipped.
            gave_up: whether the query was given up and has not answered since.
            paused: whether the user has paused the query.
        """
        # Read before the frames: this may be called while the run goes on, and frames = processed + skipped must hold.
        processed = self.processed
        return QueryStats(
            feed=feed.name,
            frames=feed.delivered,
            processed=processed,
            errors=self.errors,
            last_error=self.last_error,
            gave_up=gave_up,
            paused=paused,
            given_up=self.given_up,
            latency=Latency.of(self.latencies[:]),
        )
