"""The consumer's side of a feed: the frame its queries look at, and what each of them did with it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .feeds import Feed, Frame
from .results import Result
from .summary import Latency, QueryStats

__all__ = ["Channel", "QueryState"]

_LATENCIES = 100_000


@dataclass(slots=True, eq=False)
class QueryState:
    """A query during a run."""

    name: str
    channel: Channel
    handled: int = -1
    """Index of the last frame it took."""
    processed: int = 0
    errors: int = 0
    failures: int = 0
    """In a row."""
    last_error: str | None = None
    alive: bool = True
    result: Result | None = None
    """Of the last frame it processed."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    """Milliseconds; the last ones of a long run."""

    @property
    def ready(self) -> bool:
        frame = self.channel.frame
        return self.alive and frame is not None and frame.index > self.handled

    def take(self) -> Frame:
        """The frame to process now; it will not be ready again on this one."""
        frame = self.channel.frame
        if frame is None:
            raise RuntimeError(f"query {self.name!r} has no frame")
        self.handled = frame.index
        return frame

    def succeeded(self, result: Result, latency_ms: float) -> None:
        self.failures = 0
        self.processed += 1
        self.result = result
        self.latencies.append(latency_ms)
        self.channel.used = True

    def failed(self, message: str, max_failures: int) -> None:
        self.errors += 1
        self.failures += 1
        self.last_error = message
        if self.failures >= max_failures:
            self.alive = False
            self.result = None

    def stats(self) -> QueryStats:
        # Everything that the feed delivered counts, so that what nobody took, for whatever reason, is skipped.
        return QueryStats(
            feed=self.channel.feed.name,
            frames=self.channel.feed.delivered,
            processed=self.processed,
            errors=self.errors,
            last_error=self.last_error,
            gave_up=not self.alive,
            latency=Latency.of(self.latencies),
        )


@dataclass(slots=True, eq=False)
class Channel:
    """A feed, its queries, and the frame that they look at now."""

    feed: Feed
    queries: list[QueryState] = field(default_factory=list)
    frame: Frame | None = None
    used: bool = False
    """Whether a query processed the frame."""

    def advance(self, live: bool) -> list[tuple[Frame, dict[str, Result]]]:
        """Move on to the feed's next frame if there is one and it is time; live, it always is.

        Returns:
            The frame left behind if it was used, with the latest result of each query.
        """
        if not live and any(query.ready for query in self.queries):
            return []
        frame = self.feed.take()
        if frame is None:
            return []
        left = self.leave()
        self.frame, self.used = frame, False
        return left

    def leave(self) -> list[tuple[Frame, dict[str, Result]]]:
        """The frame, if a query processed it, with the latest result of each query."""
        if self.frame is None or not self.used:
            return []
        return [(self.frame, {query.name: query.result for query in self.queries if query.result is not None})]
