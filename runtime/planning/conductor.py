"""Following a plan: which query runs next, on which frames, and which weights are loaded meanwhile.

The same conductor drives the runner on a device and the simulation, each of which is a :class:`World`. All times are in
milliseconds since the run began.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from .joint_turns import turn_profile
from .planner import Plan
from .profile import Profile
from .residency import Step, Transfer, steps

__all__ = ["Conductor", "Link", "World"]


class World(Protocol):
    """Interface to cameras, memory, and a device that runs models. Reading a property has no side effects."""

    @property
    def now(self) -> float:
        """Time in milliseconds since the run began."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run is over, because nothing is left to do or a limit is reached."""
        ...

    def take_in(self) -> None:
        """Take in the frames that cameras have ready. Queries see only frames that were taken in."""
        ...

    def transfer(self, transfer: Transfer) -> None:
        """Evict segments from memory, then load other segments. Models continue to run meanwhile."""
        ...

    def kept(self) -> Collection[str]:
        """Return the segments that are in memory or being loaded when a new plan begins."""
        ...

    def due(self, turn: str) -> float:
        """Return the time at which a turn's weights are expected in memory, in milliseconds since the run began.

        The time is not in the future if the weights are there, and infinite if a segment that the turn needs is neither
        in memory nor being loaded.
        """
        ...

    def fresh(self, turn: str, most: int, oldest: float) -> Sequence[float]:
        """Return the arrival times, in milliseconds, of the frames that a turn should take now, oldest first.

        Args:
            turn: name of a query, or of a joint turn (several queries that run together). For a joint turn, the frames
                of the query with the most frames are returned.
            most: maximum number of frames to return; a live run returns the newest frames.
            oldest: earliest arrival time of a frame that can still be answered in time. A live run leaves out earlier
                frames, except the newest frame of all.
        """
        ...

    def process(self, turn: str, count: int) -> None:
        """Run a turn: run a query, or each query of a joint turn, on at most ``count`` of the query's frames.

        The turn's weights must be in memory. A live run takes the newest frames.

        Args:
            turn: name of a query, or of a joint turn (several queries that run together).
            count: maximum number of frames that each query of the turn takes.
        """
        ...

    def wait(self, until: float) -> None:
        """Wait until a frame arrives, weights are loaded, or the time ``until`` (in milliseconds) is reached."""
        ...

    def revised(self) -> tuple[Profile, Plan] | None:
        """Return a new plan to follow, and the profile that the plan was made from; None while there is no new plan."""
        ...


class Link:
    """Path from storage to memory, on which segments are loaded one by one; records when each load should end."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        """Segment -> time in milliseconds since the run began at which the segment is expected in memory."""
        self._free = 0.0
        """Time in milliseconds since the run began at which the last requested load of a segment is expected to end."""

    def transfer(self, profile: Profile, transfer: Transfer, now: float) -> None:
        """Note that a transfer (evictions, then loads) begins at ``now`` milliseconds, and when its loads will end."""
        for segment in transfer.evict:
            self._due.pop(segment, None)
        self._free = max(now, self._free)
        for segment in transfer.load:
            self._free += profile.load_ms(segment)
            self._due[segment] = self._free

    def clear(self) -> None:
        """Note that all segments were evicted from memory."""
        self._due.clear()

    @property
    def kept(self) -> tuple[str, ...]:
        """Segments that are in memory or being loaded."""
        return tuple(self._due)

    def due(self, segments: Collection[str]) -> float:
        """Return the time in milliseconds at which all of the segments are expected in memory.

        The time is infinite if a segment is neither in memory nor being loaded.
        """
        return max((self._due.get(segment, math.inf) for segment in segments), default=0.0)

    def coming(self, now: float) -> float:
        """Return the time in milliseconds at which the next load after ``now`` ends; infinity if nothing is loading."""
        return min((due for due in self._due.values() if due > now), default=math.inf)


class Conductor:
    """Driver that leads a world (a runner or a simulation) through the turns of a plan.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once.
        world: interface to cameras, memory and device.
        plan: plan to begin with, made from ``profile``.
    """

    def __init__(self, profile: Profile, budget: int, world: World, plan: Plan) -> None:
        self._budget, self._world = budget, world
        self._begin(profile, plan)
        self._ran: dict[str, float] = {}
        """Query or joint turn -> time at which its last run began, in milliseconds since the run began."""
        self._frame_came = False
        """Whether a query has had a frame since the run began."""
        self.blocked_ms = 0.0
        """Milliseconds in which no model ran, because the next query's weights were still being loaded. The time before
        the first frame does not count, because a model could not have run."""

    def expected_ms(self, turn: str, frames: int) -> float:
        """Return the expected milliseconds of a turn of the current plan on ``frames`` frames of each query in it."""
        return self._profile.between_ms(turn, frames)

    @property
    def plan(self) -> Plan:
        """Plan that the conductor follows now."""
        return self.followed[1]

    def run(self) -> None:
        """Lead the world from turn to turn until the run is over."""
        world, idle = self._world, False
        turn = self._first()
        while True:
            world.take_in()
            if world.over:
                return
            if (revision := world.revised()) is not None:
                self._begin(*revision)
                turn = self._first()
            elif idle and not any(self._fresh(query) for query in self.plan.order):
                # No query has a frame, so the next turn would swap weights in and have nothing to run.
                world.wait(math.inf)
                continue
            world.transfer(turn.then)
            self._await(turn.query)
            if world.over:
                return
            following = next(self._turns)
            frames = self._fresh(turn.query)
            # Requested before this turn runs, so that the next turn's weights are loaded meanwhile.
            world.transfer(following.ahead)
            if frames:
                self._process(turn.query, len(frames))
            turn, idle = following, not frames

    def _begin(self, profile: Profile, made: Plan) -> None:
        """Switch to another plan, and begin with its first turn.

        Segments in memory that the plan needs stay there, unless the plan's rule loads whole models.

        Args:
            profile: profile that the plan was made from.
            made: plan to follow.
        """
        self.followed = profile, made
        self._profile = profile = turn_profile(profile, made.joint, profile.objective)
        kept = self._world.kept()
        used = {segment for query in made.order for segment in profile.segments_of(query)}
        stays = [] if made.rule.whole else [segment for segment in kept if segment in used]
        self._world.transfer(Transfer(evict=tuple(segment for segment in kept if segment not in stays)))
        self._turns: Iterator[Step] = steps(profile, self._budget, made.order, made.rule, stays)
        self._turn_ms: Mapping[str, float] = {query: profile.run_ms(query, made.batches[query]) for query in made.order}
        """Query or joint turn -> milliseconds of a turn with the maximum number of frames that the plan allows."""

    def _first(self) -> Step:
        """Return the plan's first turn, after requesting the loads that come ahead of that turn."""
        turn = next(self._turns)
        self._world.transfer(turn.ahead)
        return turn

    def _await(self, query: str) -> None:
        """Wait until the weights of a query (or joint turn) are in memory, or the run is over.

        If the plan's rule allows it, run other queries meanwhile.
        """
        world = self._world
        while True:
            world.take_in()
            # Read before the time at which weights are due: if this thread pauses between the two, weights that are due
            # a millisecond later would seem to be there.
            now = world.now
            if world.over or (due := world.due(query)) <= now:
                return
            other = self._other(due) if self.plan.rule.fill else None
            if other is not None:
                self._process(*other)
            else:
                self._frame_came = self._frame_came or any(self._fresh(each) for each in self.plan.order)
                world.wait(due)
                self.blocked_ms += world.now - now if self._frame_came else 0.0

    def _process(self, query: str, count: int) -> None:
        """Run a query, or each query of a joint turn, on at most ``count`` frames, and note when the run began."""
        self._ran[query] = self._world.now
        self._world.process(query, count)

    def _other(self, due: float) -> tuple[str, int] | None:
        """Choose a query or joint turn to run while another turn waits for weights.

        The weights of the choice must be in memory, and the run must end in time. Of several such queries, the one that
        ran longest ago is chosen.

        Args:
            due: time by which the run must end, in milliseconds since the run began.

        Returns:
            Name of the query or joint turn, and number of frames to run; None if no run can end in time.
        """
        now = self._world.now
        found: list[tuple[float, str, int]] = []
        for query in self.plan.batches:
            if self._world.due(query) > now:
                continue
            frames = list(self._fresh(query))
            while frames and now + self._profile.run_ms(query, len(frames)) > due:
                del frames[0]
            if frames:
                found.append((self._ran.get(query, -math.inf), query, len(frames)))
        return min(found)[1:] if found else None

    def _fresh(self, query: str) -> Sequence[float]:
        """Return the arrival times, in milliseconds, of the frames that a turn of a query would take if it began now.

        For a joint turn, return the arrival times for the query with the most frames.
        """
        # A full turn could not answer an older frame within the SLA.
        oldest = self._world.now + self._turn_ms[query] - self._profile.sla_of(query)
        return self._world.fresh(query, self.plan.batches[query], oldest)
