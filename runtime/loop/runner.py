"""Runner of a bundle in real time: cameras, memory and models, which a conductor leads through the turns of a plan."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Condition, Event
from time import monotonic

from ...errors import InputError
from ..feeds import Feed
from ..planning.conductor import Conductor
from ..planning.planner import Plan, make_plan
from ..planning.profile import Profile
from ..planning.residency import Transfer
from ..planning.review import Review
from .answerer import Answerer
from .channel import Channel, QueryState
from .lineup import Change, Lineup
from .plan_input import Swapping, deepest_turns, in_turn
from .planned_weights import PlannedWeights
from .plans_in_background import PlansInBackground
from .summary import FeedStats, PlanStats, RunStats

__all__ = ["Runner"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
"""Seconds between two checks of the stop event, which cannot wake the runner when a signal handler sets the event."""
_JOIN_S = 6.0
"""Maximum seconds to wait for a feed's thread to end; a read from a silent camera blocks for up to five seconds."""
_SILENT_MS = 2000.0
"""Milliseconds without a frame after which a feed is left out of plans for the first time, but at least three periods.

The runner never waits longer at once, so that it notices a silent feed.
"""


class Runner:
    """Runner of queries in real time, on one thread; implements :class:`..planning.conductor.World`.

    Args:
        queries: query -> name of its feed, in the order of the workload.
        feeds: name -> feed that was not started yet; feeds without a query are left alone.
        answerer: object that runs queries on frames and reports the outcomes.
        swapping: input of plans; None if all weights are in memory and each turn takes one frame.
        live: whether queries take the newest frames; otherwise they take every frame.
        stop: event that ends the run early when it is set.
        beat: function called at least every two seconds, as a sign of life, unless a model runs for longer.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        feeds: Mapping[str, Feed],
        answerer: Answerer,
        swapping: Swapping | None,
        *,
        live: bool,
        stop: Event,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._answerer, self._live, self._stop, self._beat = answerer, live, stop, beat
        self._wake = Condition()
        self._weights_came = False
        """Whether a transfer of weights has ended since the runner last waited."""
        self._channels: dict[str, Channel] = {}
        self._queries: dict[str, QueryState] = {}
        self._next: Change | None = None
        self._replans = 0
        """Number of new plans that were made before the last change of the run's queries, feeds or models."""
        self._blocked_ms = 0.0
        """Milliseconds in which no model ran, because weights were loading, before the run's last change of models."""
        self._began, self._deadline, self._halted = monotonic(), math.inf, False
        self._line_up(Lineup(queries, feeds, answerer.infer, swapping))

    def run(self, frames: int | None, duration: float | None) -> RunStats:
        """Run until the feeds end or a limit is reached, and return the statistics.

        Args:
            frames: number of frames of each feed after which the run ends, once these frames are handled.
            duration: seconds after which the run ends.
        """
        self._began = monotonic()
        if duration is not None:
            self._deadline = self._began + duration
        for channel in self._channels.values():
            channel.feed.start(self._wake, live=self._live, limit=frames, depth=channel.depth)
        self._conductor.run()
        while (change := self._next) is not None and not self._ended:
            self._switch(change, frames)
            self._conductor.run()
        self.halt()
        seconds = monotonic() - self._began
        for channel in self._channels.values():
            self._answerer.tell_left(channel.close())
        return replace(self.stats(), seconds=seconds)

    def change(self, lineup: Lineup) -> None:
        """Go on with other queries, feeds and models from the next frame on, and wait until that is done.

        Queries that keep their name and feed go on with their counts. Called on any thread but the runner's own.

        Raises:
            InputError: the run ended before.
        """
        change = Change(lineup)
        with self._wake:
            if not self._halted:
                self._next = change
                self._wake.notify_all()
        while not change.done.wait(_POLL_S):
            if self._halted:
                raise InputError("the run has ended")

    def pause(self, kind: str, name: str, paused: bool) -> None:
        """Pause or resume a query or a feed, from the next frame on. Called on any thread.

        Args:
            kind: ``queries`` or ``feeds``.
            name: name of the query or feed.
            paused: whether to pause; otherwise to resume.

        Raises:
            LookupError: there is no such query or feed.
        """
        found: Mapping[str, QueryState | Channel] = self._queries if kind == "queries" else self._channels
        if name not in found:
            raise LookupError(f"{name!r} does not run; {kind} that do are {', '.join(found)}")
        found[name].pause(paused)
        _log.warning("%s: %s %s", name, "paused" if paused else "resumed", "by the user")

    def halt(self) -> None:
        """Stop all feeds, which deliver no frames afterwards, and wait for their threads. Idempotent."""
        if self._halted:
            return
        self._halted = True
        for channel in self._channels.values():
            channel.feed.stop()
        for channel in self._channels.values():
            channel.feed.join(_JOIN_S)

    # The members that a conductor calls; planning/conductor.py documents them.

    @property
    def now(self) -> float:
        return (monotonic() - self._began) * 1e3

    @property
    def over(self) -> bool:
        return self._next is not None or self._ended

    def take_in(self) -> None:
        self._beat()
        for channel in self._channels.values():
            self._answerer.tell_left(channel.advance(live=self._live))

    def transfer(self, transfer: Transfer) -> None:
        self._weights.transfer(transfer, self.now)

    def kept(self) -> tuple[str, ...]:
        return self._weights.kept

    def due(self, query: str) -> float:
        return self._weights.due(query, self.now)

    def fresh(self, query: str, most: int, oldest: float) -> Sequence[float]:
        found = self._queries[query].fresh(most, self._began + oldest / 1e3, live=self._live)
        return [(frame.arrived - self._began) * 1e3 for frame in found]

    def process(self, query: str, count: int) -> None:
        state, began = self._queries[query], monotonic()
        errors = state.counters.errors
        pairs = [(state, frame) for frame in state.take(count, live=self._live)]
        whole = self._answerer.answer(pairs, self._stop.is_set)
        # The time of a turn with a failure, or of one that had to load its own weights, says nothing about the model.
        if whole and state.counters.errors == errors and not self._review.lost:
            self._review.ran(query, count, (monotonic() - began) * 1e3)

    def wait(self, until: float) -> None:
        end = min(self._deadline, self._began + min(until, self.now + _SILENT_MS) / 1e3)
        with self._wake:
            while (
                not (self._weights_came or self._stop.is_set() or self._frame_came or self._exhausted or self._next)
                and (left := end - monotonic()) > 0
            ):
                self._wake.wait(min(_POLL_S, left))
            self._weights_came = False

    def revised(self) -> tuple[Profile, Plan] | None:
        if not self._planned:
            return None
        left_out, lost = self._queries.keys() - self._review.profile.queries.keys(), self._review.lost
        waits = any(self._queries[name].waiting for name in left_out)
        found = self._planning.revised(self.now, lambda: filter(self._is_active, self._queries), at_once=waits)
        if found is not None and lost:
            # What is in memory is not known.
            self._weights.clear()
        return found

    def _notify(self) -> None:
        """Wake the runner because a transfer of weights has ended, or a plan is made; called on any thread."""
        with self._wake:
            self._weights_came = True
            self._wake.notify_all()

    def _line_up(self, lineup: Lineup) -> None:
        """Make a plan for a lineup (queries, feeds, models), and give each its state; those that ran keep theirs."""
        queries, feeds, self._planned = lineup.queries, lineup.feeds, lineup.swapping is not None
        swapping = lineup.swapping or in_turn(queries)
        self._fps = {name: query.fps for name, query in swapping.profile.queries.items()}
        self._review = Review(swapping.profile)
        self._weights = PlannedWeights(swapping.memory, self._review, self._notify)
        self._planning = PlansInBackground(self._review, swapping.budget, swapping.policy, self._notify)
        plan = swapping.plan or make_plan(swapping.profile, swapping.budget, swapping.policy)
        self._conductor = Conductor(swapping.profile, swapping.budget, self, plan)
        depths = swapping.depths(queries) if self._live else deepest_turns(queries, self._conductor.plan.batches)
        channels = {name: Channel(feeds[name], depth) for name, depth in depths.items()}
        for name, channel in channels.items():
            if (before := self._channels.get(name)) is not None:
                channel.go_on(before)
        states = {name: QueryState(name, channels[feed]) for name, feed in queries.items()}
        for name, state in states.items():
            if (known := self._queries.get(name)) is not None:
                state.go_on(known)
            state.channel.queries.append(state)
        self._channels, self._queries = channels, states

    def _switch(self, change: Change, frames: int | None) -> None:
        """Replace the lineup (queries, feeds and models that run), and stop feeds that are not in the new one."""
        lineup, before = change.lineup, self._channels
        self._replans += self._review.replans
        self._blocked_ms += self._conductor.blocked_ms
        self._answerer.infer = lineup.infer
        lineup.begin()
        self._line_up(lineup)
        if self._planned:
            # The new plan begins with empty memory.
            self._weights.clear()
        known = [channel.feed for channel in before.values()]
        for channel in self._channels.values():
            if channel.feed not in known:
                channel.feed.start(self._wake, live=self._live, limit=frames, depth=channel.depth)
        going = [channel.feed for channel in self._channels.values()]
        for channel in before.values():
            if channel.feed not in going:
                self._answerer.tell_left(channel.close())
                channel.feed.stop()
        self._next = None
        change.done.set()

    @property
    def _ended(self) -> bool:
        """Whether the run was stopped, its time is up, or its feeds have ended."""
        return self._stop.is_set() or monotonic() >= self._deadline or self._exhausted

    @property
    def _exhausted(self) -> bool:
        """Whether no query has a waiting frame, and no feed will deliver another frame that a query wants."""
        ended = all(channel.feed.finished or not channel.wanted for channel in self._channels.values())
        return ended and not any(query.waiting for query in self._queries.values())

    @property
    def _frame_came(self) -> bool:
        """Whether a feed has delivered a frame that the runner can take in now.

        At least one query of the feed must still run. In an offline run, the feed's channel (the frames that wait for
        the feed's queries) must not be full.
        """
        return any(
            channel.wanted and channel.feed.waiting and (self._live or len(channel.frames) < channel.depth)
            for channel in self._channels.values()
        )

    def _is_active(self, name: str) -> bool:
        """Return whether a query has waiting frames, or may have some soon."""
        query = self._queries[name]
        channel = query.channel
        if query.waiting or not query.alive or channel.feed.finished:
            return bool(query.waiting)
        heard = channel.frames[-1].arrived if channel.frames else self._began
        patience = max(_SILENT_MS * self._review.patience(name), 3e3 / self._fps[name])
        return not self._live or (monotonic() - heard) * 1e3 < patience

    def stats(self) -> RunStats:
        """Return the statistics up to now. May be called on any thread while the runner runs."""
        plan = self._conductor.plan
        feeds = {name: channel.feed for name, channel in self._channels.items()}
        return RunStats(
            seconds=monotonic() - self._began,
            queries={name: query.stats() for name, query in self._queries.items()},
            feeds={name: FeedStats.of(feed) for name, feed in feeds.items()},
            blocked_ms=self._blocked_ms + self._conductor.blocked_ms,
            plan=PlanStats(plan.order, plan.batches, self._replans + self._review.replans),
        )
