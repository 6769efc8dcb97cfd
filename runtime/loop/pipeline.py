"""The runner: frames from feeds through models to sinks, on one thread, as a plan has it."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from threading import Condition, Event
from time import monotonic

from ...errors import BackendError, FeedError, InputError
from ...frames.frame import Frame
from ..decode.results import Result
from ..feeds import Feed
from ..planning.conductor import Conductor, Link
from ..planning.profile import Profile
from ..planning.residency import Transfer
from ..planning.review import Review
from ..sinks.sink import Sink
from ..trace import Trace
from .channel import Channel, Left, QueryState
from .plan_input import Swapping, in_turn
from .summary import FeedStats, PlanStats, RunStats

__all__ = ["Infer", "run_pipeline"]

_log = logging.getLogger(__name__)

Infer = Callable[[str, Frame], Result]
"""Runs a query, given by name, on a frame: preprocessing, model and decoding."""

_POLL_S = 0.1
_JOIN_S = 6.0
_SOON_MS = 1.0
"""When weights that should be there by now are looked for again."""
_SILENT_MS = 2000.0
"""A feed without a frame for so long is left out of the plan until it has one again, and for three frames at least."""


def run_pipeline(
    queries: Mapping[str, str],
    feeds: Mapping[str, Feed],
    infer: Infer,
    sinks: Sequence[Sink] = (),
    *,
    live: bool = True,
    frames: int | None = None,
    duration: float | None = None,
    stop: Event | None = None,
    swapping: Swapping | None = None,
    trace: Trace | None = None,
    max_failures: int = 10,
) -> RunStats:
    """Run every query on its feed until the feeds end, a limit is reached or ``stop`` is set.

    Live, a query whose turn it is takes the newest frames of its feed, as many as the plan has for it and can be
    answered in time; what else was delivered meanwhile is skipped. Offline, every query processes every frame. A query
    that fails skips that frame and goes on; after ``max_failures`` in a row it is given up. The run ends when all are.

    The plan is made anew where a query is given up, a feed has ended or gives no frames, and where runs take much
    longer or shorter than the profile says.

    Args:
        queries: feed of each query, in the order of the workload.
        feeds: feeds that were not started yet; those without a query are left alone.
        infer: called on this thread, never twice at once.
        sinks: told of results; closed at the end, also after an error.
        frames: end when each feed has delivered this many and they were handled.
        duration: end after this many seconds.
        stop: set it, from a signal handler or another thread, to end early. A frame still waiting is skipped.
        swapping: what to plan with; left out, all weights are in memory and queries take turns, a frame each.
        trace: told of every frame that is processed.

    Raises:
        InputError: no queries, or limits that are not positive.
        FeedError: a query of a feed that does not exist.
        GemelError: a sink failed.
    """
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        _check(queries, feeds, frames, duration)
        runner = _Runner(queries, feeds, infer, sinks, swapping, trace, max_failures, live=live, stop=stop or Event())
        stack.callback(runner.halt)
        return runner.run(frames, duration)


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
    """The world that a conductor leads; see :class:`.planning.conductor.World`."""

    def __init__(
        self,
        queries: Mapping[str, str],
        feeds: Mapping[str, Feed],
        infer: Infer,
        sinks: Sequence[Sink],
        swapping: Swapping | None,
        trace: Trace | None,
        max_failures: int,
        *,
        live: bool,
        stop: Event,
    ) -> None:
        self._infer, self._sinks, self._max_failures = infer, sinks, max_failures
        self._live, self._stop, self._trace = live, stop, trace
        self._planned = swapping is not None
        swapping = swapping or in_turn(queries)
        self._review = Review(swapping.profile)
        self._fps = {name: query.fps for name, query in swapping.profile.queries.items()}
        self._memory, self._link = swapping.memory, Link()
        self._conductor = Conductor(swapping.profile, swapping.budget, self, swapping.policy)
        batches = self._conductor.plan.batches
        depths: dict[str, int] = defaultdict(int)
        for query, feed in queries.items():
            depths[feed] = max(depths[feed], *(swapping.profile.batches(query) if live else (batches[query],)))
        self._channels = {feed: Channel(feeds[feed], depth) for feed, depth in depths.items()}
        self._queries = {name: QueryState(name, self._channels[feed]) for name, feed in queries.items()}
        for state in self._queries.values():
            state.channel.queries.append(state)
        self._wake = Condition()
        self._came = False
        """Whether weights have come since the last look."""
        self._began = monotonic()
        self._deadline = math.inf
        self._halted = False

    def run(self, frames: int | None, duration: float | None) -> RunStats:
        self._began = monotonic()
        if duration is not None:
            self._deadline = self._began + duration
        for channel in self._channels.values():
            channel.feed.start(self._wake, live=self._live, limit=frames, depth=channel.depth)
        self._conductor.run()
        self.halt()
        seconds = monotonic() - self._began
        for channel in self._channels.values():
            self._left(channel.close())
        return self._stats(seconds)

    def halt(self) -> None:
        """End all feeds; nothing is delivered from now on."""
        if self._halted:
            return
        self._halted = True
        for channel in self._channels.values():
            channel.feed.stop()
        for channel in self._channels.values():
            channel.feed.join(_JOIN_S)

    # What a conductor sees of it.

    @property
    def now(self) -> float:
        return (monotonic() - self._began) * 1e3

    @property
    def over(self) -> bool:
        if self._stop.is_set() or monotonic() >= self._deadline:
            return True
        # Looked at before frames are taken in: one that comes in between is not overlooked.
        ended = self._ended
        self._advance()
        return ended and not self._waiting

    def transfer(self, transfer: Transfer) -> None:
        if self._review.lost or not (transfer.load or transfer.evict):
            return
        try:
            self._memory.prefetch(transfer.load, transfer.evict, self._notify)
        except BackendError as error:
            _log.warning("%s; all weights are loaded again", error)
            self._review.lost = True
            return
        self._link.transfer(self._review.profile, transfer, self.now)

    def clear(self) -> None:
        self._memory.evict()
        self._link.clear()

    def due(self, query: str) -> float:
        if self._review.lost:
            # Until the next plan, weights come when their model runs; what comes so may drop what was loaded before.
            return 0.0
        segments = self._review.profile.segments_of(query)
        due = self._link.due(segments)
        return min(due, self.now) if self._memory.loaded(segments) else max(due, self.now + _SOON_MS)

    def fresh(self, query: str, most: int, oldest: float) -> Sequence[float]:
        found = self._queries[query].fresh(most, self._began + oldest / 1e3, live=self._live)
        return [(frame.arrived - self._began) * 1e3 for frame in found]

    def process(self, query: str, count: int) -> None:
        state, began = self._queries[query], monotonic()
        frames, errors = state.take(count, live=self._live), state.errors
        for frame in frames:
            if self._stop.is_set() or not state.alive:
                return
            self._answer(state, frame)
        # How long a failure takes says nothing, nor does a run that had to wait for its weights.
        if state.errors == errors and not self._review.lost:
            self._review.ran(query, count, (monotonic() - began) * 1e3)

    def wait(self, until: float) -> None:
        end = min(self._deadline, self._began + min(until, self.now + _SILENT_MS) / 1e3)
        with self._wake:
            while (
                not (self._came or self._stop.is_set() or self._stirs or (self._ended and not self._waiting))
                and (left := end - monotonic()) > 0
            ):
                # An event set by a signal handler cannot notify; it is looked at a few times a second.
                self._wake.wait(min(_POLL_S, left))
            self._came = False
        self._advance()

    def revised(self) -> Profile | None:
        if not self._planned:
            return None
        now = self.now
        left_out = (query for name, query in self._queries.items() if name not in self._review.profile.queries)
        if not self._review.due(now) and not any(query.waiting for query in left_out):
            return None
        profile = self._review.revised([name for name in self._queries if self._is_active(name)], now)
        if profile is not None:
            _log.info("planned anew for %s", ", ".join(profile.queries))
        return profile

    def _notify(self) -> None:
        with self._wake:
            self._came = True
            self._wake.notify_all()

    @property
    def _ended(self) -> bool:
        """Whether no feed has a frame left that anybody wants."""
        return all(channel.feed.finished or not channel.wanted for channel in self._channels.values())

    @property
    def _waiting(self) -> bool:
        """Whether a query has a frame."""
        return any(query.waiting for query in self._queries.values())

    @property
    def _stirs(self) -> bool:
        """Whether a feed has a frame to be taken in."""
        return any(
            channel.wanted and channel.feed.waiting and (self._live or len(channel.frames) < channel.depth)
            for channel in self._channels.values()
        )

    def _advance(self) -> None:
        """Take in what feeds have, and tell of the frames that leave for it."""
        for channel in self._channels.values():
            self._left(channel.advance(live=self._live))

    def _left(self, frames: Iterable[Left]) -> None:
        for frame, results in frames:
            for sink in self._sinks:
                sink.on_frame(frame, results)

    def _is_active(self, name: str) -> bool:
        """Whether a query has frames, or may have some soon."""
        query = self._queries[name]
        channel = query.channel
        if query.waiting or not query.alive or channel.feed.finished:
            return bool(query.waiting)
        heard = channel.frames[-1].arrived if channel.frames else self._began
        return not self._live or (monotonic() - heard) * 1e3 < max(_SILENT_MS, 3e3 / self._fps[name])

    def _answer(self, query: QueryState, frame: Frame) -> None:
        began = monotonic()
        try:
            result = self._infer(query.name, frame)
        except Exception as error:
            self._failed(query, frame, f"{type(error).__name__}: {error}")
            return
        now = monotonic()
        if self._trace is not None:
            self._trace.span("run", query.name, began, now, frame=frame.index)
        latency_ms = (now - frame.arrived) * 1000
        query.succeeded(frame, result, latency_ms)
        for sink in self._sinks:
            sink.on_result(query.name, frame, result, latency_ms)

    def _failed(self, query: QueryState, frame: Frame, message: str) -> None:
        query.failed(message, self._max_failures)
        _log.warning("query %s: frame %d of feed %s: %s", query.name, frame.index, frame.feed, message)
        if not query.alive:
            _log.error("query %s: given up after %d failures in a row: %s", query.name, query.failures, message)
        for sink in self._sinks:
            sink.on_error(query.name, frame, message)

    def _stats(self, seconds: float) -> RunStats:
        made = self._conductor.plan
        return RunStats(
            seconds=seconds,
            queries={name: query.stats() for name, query in self._queries.items()},
            feeds={
                name: FeedStats(feed.delivered, feed.restarts, feed.corrupt, feed.error)
                for name, feed in ((name, channel.feed) for name, channel in self._channels.items())
            },
            blocked_ms=self._conductor.blocked_ms,
            plan=PlanStats(made.order, made.batches, self._review.replans),
        )
