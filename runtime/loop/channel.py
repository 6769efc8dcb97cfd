"""The consumer's side of a feed: the frames its queries look at, and what each of them did with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...frames.frame import Frame
from ..decode.results import Result
from ..feeds import Feed
from .summary import Latency, QueryStats

__all__ = ["Channel", "Left", "QueryState"]

_LATENCIES = 100_000

Left = tuple[Frame, Mapping[str, Result]]
"""A frame that no query will look at again, with the latest result of each query on it or an earlier one."""


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
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    """Milliseconds; the last ones of a long run."""

    @property
    def waiting(self) -> list[Frame]:
        """Frames that it has not taken, oldest first."""
        return [frame for frame in self.channel.frames if self.alive and frame.index > self.handled]

    def fresh(self, most: int, oldest: float, *, live: bool) -> list[Frame]:
        """What to take now, oldest first.

        Args:
            most: so many frames at most.
            oldest: second of the monotonic clock; of what arrived before, only the very newest frame counts.
            live: the newest frames, otherwise the next ones, however old.
        """
        waiting = self.waiting
        if not live:
            return waiting[:most]
        newest = waiting[-most:]
        return [frame for frame in newest if frame.arrived >= oldest or frame is newest[-1]]

    def take(self, count: int, *, live: bool) -> list[Frame]:
        """The newest ``count`` frames (live) or the next ones; neither these nor any before will wait again."""
        waiting = self.waiting
        taken = waiting[-count:] if live else waiting[:count]
        self.handled = taken[-1].index
        return taken

    def succeeded(self, frame: Frame, result: Result, latency_ms: float) -> None:
        self.failures = 0
        self.processed += 1
        self.latencies.append(latency_ms)
        self.channel.results.setdefault(frame.index, {})[self.name] = result

    def failed(self, message: str, max_failures: int) -> None:
        self.errors += 1
        self.failures += 1
        self.last_error = message
        self.alive = self.failures < max_failures

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
    """A feed, its queries, and the frames that they look at now.

    Live, these are the newest ``depth`` frames. Offline, a frame stays until every query has taken it.
    """

    feed: Feed
    depth: int = 1
    queries: list[QueryState] = field(default_factory=list)
    frames: deque[Frame] = field(default_factory=deque)
    results: dict[int, dict[str, Result]] = field(default_factory=dict)
    """Of the frames here, by index."""
    last: dict[str, Result] = field(default_factory=dict)
    """Of each query, on the frames that left."""

    @property
    def wanted(self) -> bool:
        """Whether a query is left."""
        return any(query.alive for query in self.queries)

    def advance(self, *, live: bool) -> list[Left]:
        """Take in what the feed has; returns the frames that leave for it, if a query processed them."""
        left: list[Left] = []
        if not live:
            while self.frames and all(
                query.handled >= self.frames[0].index or not query.alive for query in self.queries
            ):
                left += self._leave()
        while (live or len(self.frames) < self.depth) and (frame := self.feed.take()) is not None:
            if len(self.frames) == self.depth:
                left += self._leave()
            self.frames.append(frame)
        return left

    def close(self) -> list[Left]:
        """The frames that are still here, if a query processed them."""
        return [left for _ in range(len(self.frames)) for left in self._leave()]

    def _leave(self) -> list[Left]:
        frame = self.frames.popleft()
        found = self.results.pop(frame.index, None)
        if found is None:
            return []
        self.last |= found
        return [(frame, {query.name: self.last[query.name] for query in self.queries if self._has(query)})]

    def _has(self, query: QueryState) -> bool:
        # What a query answered before it was given up says nothing about the present.
        return query.alive and query.name in self.last
