"""The runner: frames from feeds through models to sinks, on one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from threading import Condition, Event
from time import monotonic

from ..errors import FeedError, InputError
from .channel import Channel, QueryState
from .feeds import Feed, Frame
from .results import Result
from .schedule import RoundRobin, Schedule
from .sinks.sink import Sink
from .summary import FeedStats, RunStats

__all__ = ["Infer", "run"]

_log = logging.getLogger(__name__)

Infer = Callable[[str, Frame], Result]
"""Runs a query, given by name, on a frame: preprocessing, model and decoding."""

_POLL_S = 0.1
_JOIN_S = 6.0


def run(
    queries: Mapping[str, str],
    feeds: Mapping[str, Feed],
    infer: Infer,
    sinks: Sequence[Sink] = (),
    *,
    live: bool = True,
    frames: int | None = None,
    duration: float | None = None,
    stop: Event | None = None,
    schedule: Schedule | None = None,
    max_failures: int = 10,
) -> RunStats:
    """Run every query on its feed until the feeds end, a limit is reached or ``stop`` is set.

    Live, a query that is free takes the newest frame of its feed; what was delivered while it was busy is skipped.
    Offline, every query processes every frame. A query that fails skips that frame and goes on; after
    ``max_failures`` in a row it is given up. The run ends when all are.

    Args:
        queries: feed of each query, in the order of the workload.
        feeds: feeds that were not started yet; those without a query are left alone.
        infer: called on this thread, never twice at once.
        sinks: told of results; closed at the end, also after an error.
        frames: end when each feed has delivered this many and they were handled.
        duration: end after this many seconds.
        stop: set it, from a signal handler or another thread, to end early. A frame still waiting is skipped.
        schedule: who runs next; :class:`RoundRobin` when left out.

    Raises:
        InputError: no queries, or limits that are not positive.
        FeedError: a query of a feed that does not exist.
        GemelError: a sink failed.
    """
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        _check(queries, feeds, frames, duration)
        runner = _Runner(queries, feeds, infer, sinks, schedule or RoundRobin(tuple(queries)), max_failures)
        stack.callback(runner.halt)
        return runner.run(live, frames, duration, stop or Event())


def _check(queries: Mapping[str, str], feeds: Mapping[str, Feed], frames: int | None, duration: float | None) -> None:
    if not queries:
        raise InputError("there are no queries to run")
    if frames is not None and frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    if duration is not None and duration <= 0:
        raise InputError(f"duration must be more than 0 seconds, got {duration}")
    for query, feed in queries.items():
        if feed not in feeds:
            raise FeedError(f"query {query!r}: feed {feed!r} does not exist; feeds are {', '.join(feeds) or 'none'}")


class _Runner:
    def __init__(
        self,
        queries: Mapping[str, str],
        feeds: Mapping[str, Feed],
        infer: Infer,
        sinks: Sequence[Sink],
        schedule: Schedule,
        max_failures: int,
    ) -> None:
        self._infer = infer
        self._sinks = sinks
        self._schedule = schedule
        self._max_failures = max_failures
        self._wake = Condition()
        self._halted = False
        self._channels = {name: Channel(feeds[name]) for name in dict.fromkeys(queries.values())}
        self._queries = {name: QueryState(name, self._channels[feed]) for name, feed in queries.items()}
        for query in self._queries.values():
            query.channel.queries.append(query)

    def run(self, live: bool, frames: int | None, duration: float | None, stop: Event) -> RunStats:
        began = monotonic()
        deadline = None if duration is None else began + duration
        for channel in self._channels.values():
            channel.feed.start(self._wake, live=live, limit=frames)
        while not stop.is_set() and (deadline is None or monotonic() < deadline):
            ready, done, over = self._look(live, stop, deadline)
            # Outside the lock: a sink that takes its time must not hold up the feeds.
            for frame, results in done:
                self._frame_done(frame, results)
            if ready:
                self._process(self._queries[self._schedule.next(ready)])
            elif over:
                break
        self.halt()
        for channel in self._channels.values():
            for frame, results in channel.leave():
                self._frame_done(frame, results)
        return self._stats(monotonic() - began)

    def halt(self) -> None:
        """End all feeds; nothing is delivered from now on."""
        if self._halted:
            return
        self._halted = True
        for channel in self._channels.values():
            channel.feed.stop()
        for channel in self._channels.values():
            channel.feed.join(_JOIN_S)

    def _look(
        self, live: bool, stop: Event, deadline: float | None
    ) -> tuple[list[str], list[tuple[Frame, dict[str, Result]]], bool]:
        """Wait for something to do: ready queries, frames no query will look at again, whether all is over."""
        with self._wake:
            while True:
                done = [item for channel in self._channels.values() for item in channel.advance(live)]
                ready = [query.name for query in self._queries.values() if query.ready]
                over = not ready and all(
                    channel.feed.finished or not any(query.alive for query in channel.queries)
                    for channel in self._channels.values()
                )
                now = monotonic()
                if ready or done or over or stop.is_set() or (deadline is not None and now >= deadline):
                    return ready, done, over
                # An event set by a signal handler cannot notify; it is looked at a few times a second.
                self._wake.wait(_POLL_S if deadline is None else min(_POLL_S, deadline - now))

    def _process(self, query: QueryState) -> None:
        frame = query.take()
        try:
            result = self._infer(query.name, frame)
        except Exception as error:
            self._failed(query, frame, f"{type(error).__name__}: {error}")
            return
        latency_ms = (monotonic() - frame.arrived) * 1000
        query.succeeded(result, latency_ms)
        for sink in self._sinks:
            sink.on_result(query.name, frame, result, latency_ms)

    def _failed(self, query: QueryState, frame: Frame, message: str) -> None:
        query.failed(message, self._max_failures)
        _log.warning("query %s: frame %d of feed %s: %s", query.name, frame.index, frame.feed, message)
        if not query.alive:
            _log.error("query %s: given up after %d failures in a row: %s", query.name, query.failures, message)
        for sink in self._sinks:
            sink.on_error(query.name, frame, message)

    def _frame_done(self, frame: Frame, results: Mapping[str, Result]) -> None:
        for sink in self._sinks:
            sink.on_frame(frame, results)

    def _stats(self, seconds: float) -> RunStats:
        return RunStats(
            seconds=seconds,
            queries={name: query.stats() for name, query in self._queries.items()},
            feeds={
                name: FeedStats(feed.delivered, feed.restarts, feed.corrupt, feed.error)
                for name, feed in ((name, channel.feed) for name, channel in self._channels.items())
            },
        )
