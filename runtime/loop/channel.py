"""The consumer's side of a feed: the frames that its queries can take, and the results on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...frames.frame import Frame
from ..decode.results import Result
from ..feeds import Feed
from .counters import QueryCounters
from .summary import QueryStats

__all__ = ["Channel", "Left", "QueryState"]

Left = tuple[Frame, Mapping[str, Result]]
"""A frame that no query will take any more, and by query the newest result on that frame or an earlier one."""


@dataclass(slots=True, eq=False)
class QueryState:
    """A query during a run: the frames it has taken, and its counters."""

    name: str
    channel: Channel
    handled: int = -1
    """Index of the newest frame that the query took; -1 before the first."""
    alive: bool = True
    """Whether the query was not given up."""
    counters: QueryCounters = field(default_factory=QueryCounters)

    @property
    def waiting(self) -> list[Frame]:
        """Frames that the query has not taken, oldest first; none once it was given up."""
        return [frame for frame in self.channel.frames if self.alive and frame.index > self.handled]

    def fresh(self, most: int, oldest: float, *, live: bool) -> list[Frame]:
        """Return the frames that the query should take now, oldest first.

        Args:
            most: the most frames that are returned.
            oldest: second of the monotonic clock. Live, a frame that arrived earlier is left out, except the newest.
            live: return the newest frames; otherwise the oldest ones, whenever they arrived.
        """
        waiting = self.waiting
        if not live:
            return waiting[:most]
        newest = waiting[-most:]
        return [frame for frame in newest if frame.arrived >= oldest or frame is newest[-1]]

    def take(self, count: int, *, live: bool) -> list[Frame]:
        """Take the newest ``count`` waiting frames (live) or the oldest ones; no earlier frame waits afterwards."""
        waiting = self.waiting
        taken = waiting[-count:] if live else waiting[:count]
        self.handled = taken[-1].index
        return taken

    def succeeded(self, frame: Frame, result: Result, latency_ms: float) -> None:
        """Keep and count the result on a frame, ``latency_ms`` milliseconds after the frame's arrival."""
        self.counters.count_answer(latency_ms)
        self.channel.results.setdefault(frame.index, {})[self.name] = result

    def failed(self, message: str, max_failures: int) -> None:
        """Count a failure, and give the query up after ``max_failures`` in a row."""
        self.counters.count_failure(message)
        self.alive = self.counters.failures_in_a_row < max_failures

    def stats(self) -> QueryStats:
        """Return the query's part of the summary."""
        return self.counters.stats(self.channel.feed, gave_up=not self.alive)


@dataclass(slots=True, eq=False)
class Channel:
    """A feed, its queries, and the frames that they can take now.

    Live, a channel holds the newest ``depth`` frames. Offline, a frame stays until every query has taken it.
    """

    feed: Feed
    depth: int = 1
    """The most frames that are held at once."""
    queries: list[QueryState] = field(default_factory=list)
    frames: deque[Frame] = field(default_factory=deque)
    """Frames held now, oldest first."""
    results: dict[int, dict[str, Result]] = field(default_factory=dict)
    """Frame index -> query -> result, of the frames held now."""
    last: dict[str, Result] = field(default_factory=dict)
    """Query -> its newest result on a frame that has left the channel."""

    @property
    def wanted(self) -> bool:
        """Whether a query of the feed is still alive."""
        return any(query.alive for query in self.queries)

    def advance(self, *, live: bool) -> list[Left]:
        """Take in the frames that the feed holds.

        Returns:
            Processed frames that left the channel.
        """
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
        """Let all frames leave, and return those that a query processed."""
        return [left for _ in range(len(self.frames)) for left in self._leave()]

    def _leave(self) -> list[Left]:
        """Let the oldest frame leave; return it if a query processed it, otherwise nothing."""
        frame = self.frames.popleft()
        found = self.results.pop(frame.index, None)
        if found is None:
            return []
        self.last |= found
        return [(frame, {query.name: self.last[query.name] for query in self.queries if self._has_result(query)})]

    def _has_result(self, query: QueryState) -> bool:
        # The last result of a query that was given up says nothing about the present.
        return query.alive and query.name in self.last
