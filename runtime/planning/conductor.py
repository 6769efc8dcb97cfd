"""Following a plan: which query runs next, on which frames, and which weights are loaded meanwhile.

One conductor leads the runner on a device and the simulation alike: both are a :class:`World`. All times are in
milliseconds since the world began.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from .planner import Plan, Policy, make_plan
from .profile import Profile
from .residency import Step, Transfer, steps

__all__ = ["Conductor", "Link", "World"]

_EXACT = 5
"""Queries up to which a new plan during a run tries all orders: cameras wait, and six queries take 0.1 s."""


class World(Protocol):
    """Cameras, memory, and a device that runs models. Properties have no effects."""

    @property
    def now(self) -> float:
        """Milliseconds since the world began."""
        ...

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        ...

    def take_in(self) -> None:
        """Take in the frames that cameras have ready. Queries see no other frames."""
        ...

    def transfer(self, transfer: Transfer) -> None:
        """Evict segments, then load others while models run."""
        ...

    def clear(self) -> None:
        """Evict all segments."""
        ...

    def due(self, query: str) -> float:
        """Return when a query's weights will be in memory; infinity if a segment is neither there nor being loaded."""
        ...

    def fresh(self, query: str, most: int, oldest: float) -> Sequence[float]:
        """Return the arrival times of the frames that a query should take now, oldest first.

        Args:
            query: the query's name.
            most: the most frames that are returned; live, the newest ones are.
            oldest: arrival time from which frames can be answered in time. An earlier frame is left out, unless it is
                the newest of all.
        """
        ...

    def process(self, query: str, count: int) -> None:
        """Run a query, whose weights are in memory, on the newest ``count`` of its fresh frames."""
        ...

    def wait(self, until: float) -> None:
        """Wait until a frame or weights have come, but not beyond ``until``."""
        ...

    def revised(self) -> Profile | None:
        """Return a new profile to plan by from now on; None while the profile in force still fits."""
        ...


class Link:
    """The way from storage to memory, on which segments are loaded one after the other."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        """Segment -> when it is expected in memory."""
        self._free = 0.0
        """When the last load is expected to end."""

    def transfer(self, profile: Profile, transfer: Transfer, now: float) -> None:
        """Note that a transfer begins at ``now``."""
        for segment in transfer.evict:
            self._due.pop(segment, None)
        self._free = max(now, self._free)
        for segment in transfer.load:
            self._free += profile.load_ms(segment)
            self._due[segment] = self._free

    def clear(self) -> None:
        """Note that all segments were evicted."""
        self._due.clear()

    def due(self, segments: Collection[str]) -> float:
        """Return when the last of the segments is expected; infinity if one is neither there nor being loaded."""
        return max((self._due.get(segment, math.inf) for segment in segments), default=0.0)

    def coming(self, now: float) -> float:
        """Return when the next load ends after ``now``; infinity if nothing is being loaded."""
        return min((due for due in self._due.values() if due > now), default=math.inf)


class Conductor:
    """Leads a world through the turns of a plan.

    Args:
        profile: the workload on its device.
        budget: bytes of weights that may be in memory at once.
        world: cameras, memory and device.
        policy: how to plan.
        made: plan to begin with; made by the policy if left out.
    """

    def __init__(
        self, profile: Profile, budget: int, world: World, policy: Policy | None = None, made: Plan | None = None
    ) -> None:
        self._profile, self._budget, self._world = profile, budget, world
        self._policy = policy or Policy()
        self._begin(profile, made or make_plan(profile, budget, self._policy))
        self.blocked_ms = 0.0
        """Milliseconds in which no model ran because weights were awaited."""

    def run(self) -> None:
        """Lead the world until it is over."""
        world, idle = self._world, False
        turn = self._first()
        while True:
            world.take_in()
            if world.over:
                return
            if (profile := world.revised()) is not None:
                world.clear()
                self._begin(profile, make_plan(profile, self._budget, self._policy, _EXACT))
                turn = self._first()
            elif idle and not any(self._fresh(query) for query in self.plan.order):
                # No query has a frame: going on to the next turn would swap weights for nothing.
                world.wait(math.inf)
                continue
            world.transfer(turn.then)
            self._await(turn.query)
            if world.over:
                return
            following = next(self._turns)
            frames = self._fresh(turn.query)
            # Asked for before this turn runs, so that the next turn's weights are loaded meanwhile.
            world.transfer(following.ahead)
            if frames:
                world.process(turn.query, len(frames))
            turn, idle = following, not frames

    def _begin(self, profile: Profile, made: Plan) -> None:
        """Follow another plan from its first turn on."""
        self._profile, self.plan = profile, made
        self._turns: Iterator[Step] = steps(profile, self._budget, made.order, made.rule)
        self._turn_ms: Mapping[str, float] = {query: profile.run_ms(query, made.batches[query]) for query in made.order}
        """Query -> milliseconds of a turn that takes as many frames as the plan allows."""

    def _first(self) -> Step:
        """Return the plan's first turn, with the loads ahead of it begun."""
        turn = next(self._turns)
        self._world.transfer(turn.ahead)
        return turn

    def _await(self, query: str) -> None:
        """Wait until a query's weights are in memory or the world is over; run others meanwhile if the rule allows."""
        world = self._world
        while True:
            world.take_in()
            if world.over or (due := world.due(query)) <= (now := world.now):
                return
            other = self._other(due) if self.plan.rule.fill else None
            if other is not None:
                world.process(*other)
            else:
                world.wait(due)
                self.blocked_ms += world.now - now

    def _other(self, due: float) -> tuple[str, int] | None:
        """Choose a query to run until ``due``: of those that end in time, the one whose frame arrived first.

        Returns:
            The query and the number of frames to run it on; None if no query can end in time.
        """
        now = self._world.now
        found: list[tuple[float, str, int]] = []
        for query in self.plan.order:
            if self._world.due(query) > now:
                continue
            frames = list(self._fresh(query))
            while frames and now + self._profile.run_ms(query, len(frames)) > due:
                del frames[0]
            if frames:
                found.append((frames[0], query, len(frames)))
        return min(found)[1:] if found else None

    def _fresh(self, query: str) -> Sequence[float]:
        """Return the arrival times of the frames that a query would take if its turn began now."""
        # A frame that is older could not be answered within the SLA by a full turn.
        oldest = self._world.now + self._turn_ms[query] - self._profile.sla_ms
        return self._world.fresh(query, self.plan.batches[query], oldest)
