"""A discrete-event simulation of a plan: cameras, one device that runs models, one link that loads weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .planner import Plan
from .profile import Profile
from .residency import Step, Transfer, steps

__all__ = ["QueryOutcome", "Simulation", "simulate"]


@dataclass
class QueryOutcome:
    """What became of a query's frames."""

    frames: int = 0
    processed: int = 0
    late: int = 0
    """Of those processed: answered after the SLA."""
    latencies: list[float] = field(default_factory=list)
    """Milliseconds from a frame's arrival to its result."""
    answers: list[tuple[float, int]] = field(default_factory=list)
    """When a result came, in milliseconds, and the newest frame that it is of."""

    @property
    def skipped(self) -> int:
        return self.frames - self.processed


@dataclass
class Simulation:
    """What a run would do."""

    seconds: float
    queries: dict[str, QueryOutcome]
    swaps: int = 0
    """Segments that came into memory."""
    loaded: int = 0
    """Their bytes."""
    blocked_ms: float = 0.0
    """Time in which nothing ran, as weights were awaited."""
    busy_ms: float = 0.0
    """Time in which a model ran."""
    peak: int = 0
    """The most bytes that were in memory, or on their way there, at once."""

    @property
    def processed(self) -> float:
        """The part of all frames."""
        return sum(q.processed for q in self.queries.values()) / max(1, sum(q.frames for q in self.queries.values()))


class _Camera:
    """Frames of a query: the k-th arrives at ``offset + k * period`` milliseconds."""

    def __init__(self, fps: float, offset: float) -> None:
        self._period, self._offset = 1e3 / fps, offset
        self._next = 0

    def arrived(self, now: float) -> int:
        """How many have arrived by then."""
        # A frame that arrives now, but for rounding, is there.
        return max(0, math.floor((now - self._offset) / self._period + 1e-9) + 1)

    def arrival(self, index: int) -> float:
        return self._offset + index * self._period

    def next_arrival(self) -> float:
        """When a frame is there that was not taken."""
        return self.arrival(self._next)

    def fresh(self, now: float, most: int, oldest: float) -> list[int]:
        """The newest frames that nobody took, which did not arrive before ``oldest``; the newest at least."""
        end = self.arrived(now)
        young = range(max(self._next, end - most), end)
        return [index for index in young if index == end - 1 or self.arrival(index) >= oldest - 1e-9]

    def take(self, frames: list[int]) -> None:
        self._next = frames[-1] + 1


def simulate(profile: Profile, budget: int, plan: Plan, seconds: float = 60.0, seed: int = 0) -> Simulation:
    """Run a plan on cameras whose clocks have nothing to do with each other.

    Args:
        profile: the device and its workload.
        budget: bytes of weights.
        plan: what to do.
        seconds: how long.
        seed: of the cameras' clocks.
    """
    return _Run(profile, budget, plan, seconds * 1e3, seed).run()


class _Run:
    def __init__(self, profile: Profile, budget: int, plan: Plan, end: float, seed: int) -> None:
        self._profile, self._plan, self._end = profile, plan, end
        self._now = self._link_free = 0.0
        feeds = {query: spec.feed or f"query {query}" for query, spec in profile.queries.items()}
        fastest: dict[str, float] = {}
        for query, spec in profile.queries.items():
            fastest[feeds[query]] = max(spec.fps, fastest.get(feeds[query], 0.0))
        random = np.random.default_rng(seed)
        first = {feed: float(random.random()) * 1e3 / fps for feed, fps in fastest.items()}
        self._cameras = {query: _Camera(spec.fps, first[feeds[query]]) for query, spec in profile.queries.items()}
        self._resident: dict[str, float] = {}
        """Segments, and since when."""
        self._bytes = 0
        self._result = Simulation(end / 1e3, {query: QueryOutcome() for query in profile.queries})
        self._turns: Iterator[Step] = steps(profile, budget, plan.order, plan.rule)

    def run(self) -> Simulation:
        turn = next(self._turns)
        self._transfer(turn.ahead)
        while True:
            self._transfer(turn.then)
            self._await(turn.query)
            if self._now >= self._end:
                break
            following = next(self._turns)
            frames = self._frames(turn.query)
            # The next turn's weights are on their way while this one runs.
            self._transfer(following.ahead)
            if frames:
                self._process(turn.query, frames)
            elif not any(self._frames(query) for query in self._plan.order):
                self._now = max(self._now, min(camera.next_arrival() for camera in self._cameras.values()))
            turn = following
        for query, outcome in self._result.queries.items():
            outcome.frames = self._cameras[query].arrived(self._end)
        return self._result

    def _transfer(self, transfer: Transfer) -> None:
        """Drop segments now, and load others one after the other."""
        for segment in transfer.evict:
            del self._resident[segment]
            self._bytes -= self._profile.segments[segment].bytes
        self._link_free = max(self._now, self._link_free)
        for segment in transfer.load:
            self._link_free += self._profile.load_ms(segment)
            self._resident[segment] = self._link_free
            self._bytes += self._profile.segments[segment].bytes
            self._result.loaded += self._profile.segments[segment].bytes
        self._result.swaps += len(transfer.load)
        self._result.peak = max(self._result.peak, self._bytes)

    def _await(self, query: str) -> None:
        """Until a query's weights are there; others run meanwhile if they may."""
        ready = max((self._resident[segment] for segment in self._profile.segments_of(query)), default=self._now)
        while self._plan.rule.fill and self._now < ready:
            other = self._other(ready)
            if other is None:
                break
            begin, name, frames = other
            self._block(begin)
            self._process(name, frames)
        self._block(ready)

    def _block(self, until: float) -> None:
        if until > self._now:
            self._result.blocked_ms += max(0.0, min(until, self._end) - self._now)
            self._now = until

    def _other(self, ready: float) -> tuple[float, str, list[int]] | None:
        """Of the queries that can run before ``ready``, the one whose frame came first, or will; when, and on what."""
        found: list[tuple[float, float, str, list[int]]] = []
        for query in self._plan.order:
            since = max((self._resident.get(each, math.inf) for each in self._profile.segments_of(query)), default=0.0)
            if since >= ready:
                continue
            begin = max(self._now, since, self._cameras[query].next_arrival())
            frames = self._frames(query, begin)
            while frames and begin + self._profile.run_ms(query, len(frames)) > ready:
                frames = frames[1:]
            if frames:
                found.append((self._cameras[query].arrival(frames[0]), begin, query, frames))
        return min(found)[1:] if found else None

    def _frames(self, query: str, now: float | None = None) -> list[int]:
        now = self._now if now is None else now
        batch = self._plan.batches[query]
        oldest = now + self._profile.run_ms(query, batch) - self._profile.sla_ms
        return self._cameras[query].fresh(now, batch, oldest)

    def _process(self, query: str, frames: list[int]) -> None:
        camera, outcome = self._cameras[query], self._result.queries[query]
        camera.take(frames)
        time = self._profile.run_ms(query, len(frames))
        self._now += time
        self._result.busy_ms += time
        if self._now > self._end:
            return
        outcome.processed += len(frames)
        outcome.answers.append((self._now, frames[-1]))
        for index in frames:
            latency = self._now - camera.arrival(index)
            outcome.latencies.append(latency)
            outcome.late += latency > self._profile.sla_ms + 1e-6
