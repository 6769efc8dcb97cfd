"""Channel of a feed: the frames that wait for the feed's queries, and the results on these frames."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

from ...frames.frame import Frame
from ..decode.results import Result
from ..feeds import Feed
from .counters import QueryCounters
from .summary import QueryStats

__all__ = ["Channel", "Left", "QueryState"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0
"""Seconds before a query that was given up is tried again: the first time, and at most. The pause doubles each time."""

Left = tuple[Frame, Mapping[str, Result]]
"""Frame that no query will take any more, and a mapping: query -> newest result on that frame or an earlier one."""


@dataclass(slots=True, eq=False)
class QueryState:
    """State of a query during a run: which frames the query has taken, and its counters."""

    name: str
    channel: Channel
    handled: int = -1
    """Index of the newest frame that the query took; -1 before the first frame."""
    tried_again_at: float = -math.inf
    """When the query is tried again after it was given up, in seconds of the monotonic clock; infinity for never."""
    pauses: int = 0
    """Number of times that the query was given up since its last answer."""
    paused: bool = False
    """Whether the user has paused the query."""
    counters: QueryCounters = field(default_factory=QueryCounters)

    @property
    def alive(self) -> bool:
        """Whether the query takes frames; False while it is paused, or given up because of its failures."""
        return not self.paused and monotonic() >= self.tried_again_at

    @property
    def gave_up(self) -> bool:
        """Whether the query was given up and has not answered since."""
        return self.pauses > 0

    @property
    def pause_left(self) -> float:
        """Seconds until the query is tried again; infinity for never."""
        return max(0.0, self.tried_again_at - monotonic())

    @property
    def waiting(self) -> list[Frame]:
        """Frames that the query has not taken yet, oldest first; empty while the query is paused or given up."""
        return [frame for frame in self.channel.frames if frame.index > self.handled] if self.alive else []

    def pause(self, paused: bool) -> None:
        """Pause or resume the query. A paused query takes no frames, and its last result is not shown."""
        self.paused = paused
        self.channel.last.pop(self.name, None)

    def go_on(self, before: QueryState) -> None:
        """Continue from the state that the query of this name had before a reload of the run.

        A paused query stays paused. If the query has the same feed as before, its counters go on.
        """
        self.paused = before.paused
        if before.channel.feed is self.channel.feed:
            self.handled, self.counters = before.handled, before.counters
            # The new model deserves a try at once, even if the old one was given up.
            self.counters.failures_in_a_row = 0

    def fresh(self, most: int, oldest: float, *, live: bool) -> list[Frame]:
        """Return the frames that the query should take now, oldest first.

        Args:
            most: maximum number of frames to return.
            oldest: earliest arrival in seconds of the monotonic clock. A live run leaves out frames that arrived
                earlier, except the newest frame.
            live: whether to return the newest frames; otherwise the oldest frames, whenever they arrived.
        """
        waiting = self.waiting
        if not live:
            return waiting[:most]
        newest = waiting[-most:]
        return [frame for frame in newest if frame.arrived >= oldest or frame is newest[-1]]

    def take(self, count: int, *, live: bool) -> list[Frame]:
        """Take and return up to ``count`` frames that wait for the query: the newest (live), or the oldest (otherwise).

        Frames older than those taken do not wait for the query any more.
        """
        waiting = self.waiting
        taken = waiting[-count:] if live else waiting[:count]
        if taken:
            self.handled = taken[-1].index
        return taken

    def succeeded(self, frame: Frame, result: Result, latency_ms: float) -> None:
        """Store and count the result on a frame, which came ``latency_ms`` milliseconds after the frame's arrival."""
        self.counters.count_answer(latency_ms)
        self.pauses = 0
        self.channel.results.setdefault(frame.index, {})[self.name] = result

    def failed(self, message: str, max_failures: int, *, again: bool = False) -> None:
        """Count a failure of the query, and give the query up after ``max_failures`` failures in a row.

        Args:
            message: reason of the failure.
            max_failures: number of failures in a row after which the query is given up. After a pause, one is enough.
            again: whether a query that is given up is tried again after a pause, which doubles each time.
        """
        self.counters.count_failure(message)
        if self.counters.failures_in_a_row < max_failures:
            return
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self.pauses) if again else math.inf
        self.tried_again_at = monotonic() + pause
        self.pauses = min(self.pauses + 1, 100)
        self.counters.given_up += 1
        # The last result of a query that was given up says nothing about the present.
        self.channel.last.pop(self.name, None)

    def stats(self) -> QueryStats:
        """Return the statistics of the query up to now."""
        return self.counters.stats(self.channel.feed, gave_up=self.gave_up, paused=self.paused)


@dataclass(slots=True, eq=False)
class Channel:
    """Feed with its queries, and the frames that the queries can take now.

    In a live run, a channel holds the newest ``depth`` frames. In an offline run, a frame stays until every query has
    taken it.
    """

    feed: Feed
    depth: int = 1
    """Maximum number of frames of the feed that wait for its queries at once."""
    queries: list[QueryState] = field(default_factory=list)
    frames: deque[Frame] = field(default_factory=deque)
    """Frames of the feed that wait for its queries now, oldest first."""
    results: dict[int, dict[str, Result]] = field(default_factory=dict)
    """Frame index -> query -> result, for the frames of the feed that wait for its queries now."""
    paused: bool = False
    """Whether the user has paused the feed."""
    last: dict[str, Result] = field(default_factory=dict)
    """Query -> newest result of the query on a frame that no longer waits for queries of the feed."""

    @property
    def wanted(self) -> bool:
        """Whether the feed still needs to deliver frames, because a query takes them now or is tried again later."""
        return any(query.tried_again_at < math.inf for query in self.queries)

    def can_advance(self, *, live: bool) -> bool:
        """Return whether the feed has delivered a frame that can be taken in now.

        At least one query of the feed must still run. In an offline run, the channel must not be full.
        """
        return self.wanted and self.feed.waiting and (live or len(self.frames) < self.depth)

    def advance(self, *, live: bool) -> list[Left]:
        """Take in the frames that the feed holds.

        Returns:
            Frames that left the channel and that a query had processed, with their results.
        """
        left: list[Left] = []
        if not live:
            while self.frames and all(
                query.handled >= self.frames[0].index or not query.alive for query in self.queries
            ):
                left += self._leave()
        while (live or len(self.frames) < self.depth) and (frame := self.feed.take()) is not None:
            # After a change of the run, there may be more frames than the channel holds now.
            while len(self.frames) >= self.depth:
                left += self._leave()
            self.frames.append(frame)
        return left

    def go_on(self, before: Channel) -> None:
        """Continue from the state that the feed of this name had before a reload of the run.

        A paused feed stays paused. If the feed itself is the same, its waiting frames and their results are kept.
        """
        if before.paused:
            self.pause(True)
        if before.feed is self.feed:
            self.feed.depth = self.depth
            self.frames.extend(before.frames)
            self.results.update(before.results)
            self.last.update(before.last)

    def pause(self, paused: bool) -> None:
        """Pause or resume the feed. While a feed is paused, its source is closed."""
        self.paused = paused
        self.feed.pause(paused)

    def close(self) -> list[Left]:
        """Remove all waiting frames of the feed; return the frames that a query had processed, with their results."""
        return [left for _ in range(len(self.frames)) for left in self._leave()]

    def _leave(self) -> list[Left]:
        """Remove the feed's oldest waiting frame, and return the frame with the newest results of the feed's queries.

        Returns:
            A list with the frame and the results as its only item; empty if no query processed the frame.
        """
        frame = self.frames.popleft()
        found = self.results.pop(frame.index, None)
        if found is None:
            return []
        self.last |= found
        return [(frame, {query.name: self.last[query.name] for query in self.queries if self._has_result(query)})]

    def _has_result(self, query: QueryState) -> bool:
        return not query.gave_up and not query.paused and query.name in self.last
