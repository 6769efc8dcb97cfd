"""Discrete-event simulation of a plan: cameras, one device that runs models, and one link that loads weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .conductor import Conductor, Link
from .joint_turns import turn_profile
from .planner import Plan
from .profile import Profile
from .residency import Transfer

__all__ = ["QueryOutcome", "Simulation", "simulate"]


@dataclass
class QueryOutcome:
    """Counts and latencies of one query's frames in a simulated run."""

    frames: int = 0
    """Number of frames that arrived for the query."""
    processed: int = 0
    """Number of frames that the query answered."""
    late: int = 0
    """Number of frames that the query answered later than the SLA allows."""
    latencies: list[float] = field(default_factory=list)
    """Milliseconds from arrival to result, for each frame that the query answered."""
    answers: list[tuple[float, int]] = field(default_factory=list)
    """End of each of the query's turns in milliseconds, and index of the newest frame that the turn answered."""

    @property
    def skipped(self) -> int:
        """Number of frames that the query did not answer."""
        return self.frames - self.processed


@dataclass
class Simulation:
    """Outcome of a simulated run."""

    seconds: float
    queries: dict[str, QueryOutcome]
    swaps: int = 0
    """Number of segment loads in the simulated run."""
    loaded: int = 0
    """Total bytes of all segment loads in the simulated run."""
    blocked_ms: float = 0.0
    """Milliseconds in which no model ran, because the next query's weights were still being loaded."""
    busy_ms: float = 0.0
    """Milliseconds of the simulated run in which a model ran."""
    peak: int = 0
    """Maximum bytes of weights that were in memory or being loaded at once in the simulated run."""

    @property
    def processed(self) -> float:
        """Fraction of the frames of all queries that were answered in the simulated run, 0 to 1."""
        return sum(q.processed for q in self.queries.values()) / max(1, sum(q.frames for q in self.queries.values()))


class _Camera:
    """Simulated camera of one query. Frame ``k`` arrives at ``offset + k * period`` milliseconds."""

    def __init__(self, fps: float, offset: float) -> None:
        self._period, self._offset = 1e3 / fps, offset
        self._next = 0
        """Index of the camera's oldest frame that the query has not taken or passed over."""

    def arrived(self, now: float) -> int:
        """Return the number of frames that have arrived from the camera by ``now`` milliseconds."""
        # The small number keeps rounding from losing a frame that arrives exactly now.
        return max(0, math.floor((now - self._offset) / self._period + 1e-9) + 1)

    def arrival(self, index: int) -> float:
        """Return the time in milliseconds at which a frame of the camera arrives."""
        return self._offset + index * self._period

    def next_arrival(self, now: float) -> float:
        """Return the time in milliseconds at which the camera's first frame after ``now`` arrives."""
        return self.arrival(self.arrived(now))

    def fresh(self, now: float, most: int, oldest: float) -> list[int]:
        """Return the indices of the camera's newest frames that were not taken yet, at most ``most`` of them.

        Frames that arrived before ``oldest`` milliseconds are left out, except the newest frame of all.
        """
        end = self.arrived(now)
        young = range(max(self._next, end - most), end)
        return [index for index in young if index == end - 1 or self.arrival(index) >= oldest - 1e-9]

    def take(self, now: float, count: int) -> range:
        """Take the camera's newest frames that were not taken yet, at most ``count``, and return their indices.

        No frame that has arrived by ``now`` milliseconds can be taken afterwards.
        """
        first, self._next = self._next, self.arrived(now)
        return range(max(first, self._next - count), self._next)


def simulate(profile: Profile, budget: int, plan: Plan, seconds: float = 60.0, seed: int = 0) -> Simulation:
    """Simulate a run that follows a plan, with cameras whose clocks are independent of each other.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once.
        plan: plan to follow.
        seconds: length of the simulated run in seconds.
        seed: seed of the random phases of the cameras' clocks.
    """
    world = _World(profile, plan, seconds, seed)
    conductor = Conductor(profile, budget, world, plan)
    conductor.run()
    return world.finish(conductor.blocked_ms)


class _World:
    """Cameras, memory and a device in virtual time; implements :class:`.conductor.World`."""

    def __init__(self, profile: Profile, plan: Plan, seconds: float, seed: int) -> None:
        self._profile, self._plan, self._end = profile, plan, seconds * 1e3
        self._turns = turn_profile(profile, plan.joint, profile.objective)
        """Profile in which joint turns take the place of their queries."""
        self.now = 0.0
        self._link = Link()
        self._bytes = 0
        feeds = {query: spec.feed or f"query {query}" for query, spec in profile.queries.items()}
        fastest: dict[str, float] = {}
        for query, spec in profile.queries.items():
            fastest[feeds[query]] = max(spec.fps, fastest.get(feeds[query], 0.0))
        random = np.random.default_rng(seed)
        first = {feed: float(random.random()) * 1e3 / fps for feed, fps in fastest.items()}
        self._cameras = {query: _Camera(spec.fps, first[feeds[query]]) for query, spec in profile.queries.items()}
        self.result = Simulation(seconds, {query: QueryOutcome() for query in profile.queries})

    @property
    def over(self) -> bool:
        return self.now >= self._end

    def take_in(self) -> None:
        """Do nothing: frames of simulated cameras can be taken as soon as they arrive."""

    def transfer(self, transfer: Transfer) -> None:
        self._link.transfer(self._profile, transfer, self.now)
        size = self._profile.segments
        self._bytes -= sum(size[segment].bytes for segment in transfer.evict)
        loaded = sum(size[segment].bytes for segment in transfer.load)
        self._bytes += loaded
        self.result.loaded += loaded
        self.result.swaps += len(transfer.load)
        self.result.peak = max(self.result.peak, self._bytes)

    def kept(self) -> tuple[str, ...]:
        return self._link.kept

    def due(self, turn: str) -> float:
        return self._link.due(self._turns.segments_of(turn))

    def fresh(self, turn: str, most: int, oldest: float) -> list[float]:
        cameras = [self._cameras[query] for query in self._plan.queries_of(turn)]
        found = [[camera.arrival(index) for index in camera.fresh(self.now, most, oldest)] for camera in cameras]
        return max(found, key=len)

    def process(self, turn: str, count: int) -> None:
        cameras = {query: self._cameras[query] for query in self._plan.queries_of(turn)}
        taken = {query: camera.take(self.now, count) for query, camera in cameras.items()}
        time = self._turns.run_ms(turn, count)
        self.now += time
        self.result.busy_ms += max(0.0, min(time, self._end - self.now + time))
        if self.now > self._end:
            return
        for query, frames in taken.items():
            if frames:
                self._answer(query, frames)

    def _answer(self, query: str, frames: range) -> None:
        """Count frames of one query as answered at the current simulated time.

        Args:
            query: name of the query.
            frames: indices of the answered frames of the query's camera, oldest first.
        """
        camera, outcome = self._cameras[query], self.result.queries[query]
        outcome.processed += len(frames)
        outcome.answers.append((self.now, frames[-1]))
        for index in frames:
            latency = self.now - camera.arrival(index)
            outcome.latencies.append(latency)
            outcome.late += latency > self._profile.sla_of(query) + 1e-6

    def wait(self, until: float) -> None:
        if until < math.inf and not self._plan.rule.fill:
            # No other query may run during the wait, so no frame needs to end the wait earlier.
            self.now = min(until, self._end)
            return
        # Wake only for frames of queries whose weights will be in memory; for all frames if the wait has no other end.
        turns = [turn for turn in self._plan.batches if until == math.inf or self.due(turn) <= until]
        cameras = [self._cameras[query] for turn in turns for query in self._plan.queries_of(turn)]
        frame = min((camera.next_arrival(self.now) for camera in cameras), default=math.inf)
        self.now = min(until, frame, self._link.coming(self.now), self._end)

    def revised(self) -> None:
        return None

    def finish(self, blocked_ms: float) -> Simulation:
        """Count the frames that arrived, and return the outcome of the simulated run."""
        self.result.blocked_ms = blocked_ms
        for query, outcome in self.result.queries.items():
            outcome.frames = self._cameras[query].arrived(self._end)
        return self.result
