"""Following a plan: whose turn it is, on which frames, and what is loaded meanwhile.

The same conductor leads the device's runner and the simulation; what they are to it is a :class:`World`. All times are
in milliseconds.
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
"""Of the queries of a plan that is made anew, as cameras wait meanwhile: all orders of six take a tenth of a second."""


class World(Protocol):
    """Cameras, memory and the device that runs models."""

    @property
    def now(self) -> float: ...

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done."""
        ...

    def transfer(self, transfer: Transfer) -> None:
        """Drop segments, and load others while models run."""
        ...

    def clear(self) -> None:
        """Drop everything."""
        ...

    def due(self, query: str) -> float:
        """When a query's weights are in memory, as far as is known; infinite if they are not even on their way."""
        ...

    def fresh(self, query: str, most: int, oldest: float) -> Sequence[float]:
        """When those frames arrived that a query should take now, oldest first.

        Args:
            query: its name.
            most: so many at most, the newest.
            oldest: frames that arrived before cannot be answered in time, and only the very newest one may be so late.
        """
        ...

    def process(self, query: str, count: int) -> None:
        """Run a query, whose weights are in memory, on the last ``count`` of its fresh frames."""
        ...

    def wait(self, until: float) -> None:
        """Until then, or until a frame or weights have come."""
        ...

    def revised(self) -> Profile | None:
        """Another profile to plan by from now on, if the world is no longer what it was."""
        ...


class Link:
    """When segments are expected in memory: they come one after the other."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._free = 0.0

    def transfer(self, profile: Profile, transfer: Transfer, now: float) -> None:
        for segment in transfer.evict:
            self._due.pop(segment, None)
        self._free = max(now, self._free)
        for segment in transfer.load:
            self._free += profile.load_ms(segment)
            self._due[segment] = self._free

    def clear(self) -> None:
        self._due.clear()

    def due(self, segments: Collection[str]) -> float:
        """When the last of them is there; infinite if one is neither there nor coming."""
        return max((self._due.get(segment, math.inf) for segment in segments), default=0.0)

    def coming(self, now: float) -> float:
        """When the next segment that is still on its way is there."""
        return min((due for due in self._due.values() if due > now), default=math.inf)


class Conductor:
    """Leads a world through the turns of a plan.

    Args:
        profile: of the workload on its device.
        budget: bytes of weights.
        world: what is led.
        policy: how to plan.
        made: a plan to begin with; by the policy if left out.
    """

    def __init__(
        self, profile: Profile, budget: int, world: World, policy: Policy | None = None, made: Plan | None = None
    ) -> None:
        self._profile, self._budget, self._world = profile, budget, world
        self._policy = policy or Policy()
        self._begin(profile, made or make_plan(profile, budget, self._policy))
        self.blocked_ms = 0.0
        """Time in which nothing ran, as weights were awaited."""

    def run(self) -> None:
        """Until the world is over."""
        world, idle = self._world, False
        turn = self._first()
        while not world.over:
            if (profile := world.revised()) is not None:
                world.clear()
                self._begin(profile, make_plan(profile, self._budget, self._policy, _EXACT))
                turn = self._first()
            elif idle and not any(self._fresh(query) for query in self.plan.order):
                # Weights come and go for frames: without any, the turn stays where it is.
                world.wait(math.inf)
                continue
            world.transfer(turn.then)
            self._await(turn.query)
            if world.over:
                break
            following = next(self._turns)
            frames = self._fresh(turn.query)
            # The next turn's weights are on their way while this one runs.
            world.transfer(following.ahead)
            if frames:
                world.process(turn.query, len(frames))
            turn, idle = following, not frames

    def _begin(self, profile: Profile, made: Plan) -> None:
        self._profile, self.plan = profile, made
        self._turns: Iterator[Step] = steps(profile, self._budget, made.order, made.rule)
        # What a full batch takes: frames that are too old for that are left out.
        self._times: Mapping[str, float] = {query: profile.run_ms(query, made.batches[query]) for query in made.order}

    def _first(self) -> Step:
        turn = next(self._turns)
        self._world.transfer(turn.ahead)
        return turn

    def _await(self, query: str) -> None:
        """Until a query's weights are there; others run meanwhile if they may."""
        world = self._world
        while not world.over and (due := world.due(query)) > (now := world.now):
            other = self._other(due) if self.plan.rule.fill else None
            if other is not None:
                world.process(*other)
            else:
                world.wait(due)
                self.blocked_ms += world.now - now

    def _other(self, due: float) -> tuple[str, int] | None:
        """Of the queries that can be done before ``due``, the one whose frame came first; and on how many frames."""
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
        oldest = self._world.now + self._times[query] - self._profile.sla_ms
        return self._world.fresh(query, self.plan.batches[query], oldest)
