"""Simulated runs of tools/reproduce_paper.py: which there are, and what is kept of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from paper_merge import Query, Setting, profile_of
from paper_models import Architecture, Fit

from gemel.runtime.planning.planner import POLICIES, Policy, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.simulate import QueryOutcome, simulate

__all__ = ["HALF_LIVES", "MEMORY", "Cell", "Outcome", "Runs", "ages", "memory_bytes"]

MEMORY = {"min": 0.0, "50 %": 0.5, "75 %": 0.75, "all": 1.0}
"""Settings as the published scheduler has them: the way from what the hungriest model needs to what all need."""
HALF_LIVES = (100, 300, 1000)
"""Milliseconds in which an old result loses half of what it is worth; how fast scenes change is not known."""
_TARGET = 0.95
"""Accuracy of a merged query beside its original: the least that merging accepts."""

_POLICIES = {**POLICIES, "gemel, fair": replace(POLICIES["gemel"], fair=True)}


class Cell(NamedTuple):
    """One point of a sweep."""

    workload: str
    memory: str
    policy: str
    """Of :data:`POLICIES`; or "gemel, fair", whose batch sizes are chosen as those of nexus."""
    setting: Setting


@dataclass(frozen=True)
class Outcome:
    """What comes of a cell; parts are from 0 to 1."""

    processed: float
    """Of all frames."""
    lowest: float
    """Of the frames of the query that has most to lose."""
    blocked: float
    """Of the time: nothing runs, as weights are awaited."""
    age_ms: float
    """Of the frame whose result answers a frame, on average; 0 for one that is processed in time."""
    accuracy: tuple[float, ...]
    """Relative to the original models on every frame, for each of :data:`HALF_LIVES`."""


def memory_bytes(profile: Profile, memory: str) -> int:
    """Bytes of a memory setting, for an unmerged profile."""
    least, most = profile.budget("min"), profile.budget("all")
    return least + int(MEMORY[memory] * (most - least))


@dataclass
class Runs:
    """Runs cells, each once."""

    workloads: Mapping[str, Sequence[Query]]
    known: Mapping[str, Architecture]
    fit: Fit
    seconds: float
    done: dict[Cell, Outcome] = field(default_factory=dict)

    def __getitem__(self, cell: Cell) -> Outcome:
        if cell not in self.done:
            self.done[cell] = self._run(cell)
        return self.done[cell]

    def profile(self, workload: str, setting: Setting) -> Profile:
        return profile_of(self.workloads[workload], self.known, self.fit, setting)

    def all(self, cells: Iterable[Cell]) -> list[Outcome]:
        return [self[cell] for cell in cells]

    def _run(self, cell: Cell) -> Outcome:
        # The same bytes whatever is merged.
        budget = memory_bytes(self.profile(cell.workload, replace(cell.setting, merged=0.0)), cell.memory)
        profile = self.profile(cell.workload, cell.setting)
        return _simulated(profile, budget, _POLICIES[cell.policy], self.seconds)


def _simulated(profile: Profile, budget: int, policy: Policy, seconds: float) -> Outcome:
    found = simulate(profile, budget, make_plan(profile, budget, policy), seconds)
    stale = [
        np.array([np.inf if age is None else age for age in ages(each, profile.queries[name].fps, profile.sla_ms)])
        for name, each in found.queries.items()
    ]
    # A query with a segment in common with others was retrained.
    quality = [_TARGET if len(profile.segments_of(name)) > 1 else 1.0 for name in found.queries]
    seen = np.concatenate(stale)
    return Outcome(
        found.processed,
        min(each.processed / max(1, each.frames) for each in found.queries.values()),
        found.blocked_ms / (found.seconds * 1e3),
        float(seen[np.isfinite(seen)].mean()) if np.isfinite(seen).any() else np.inf,
        tuple(
            float(np.mean([part * (0.5 ** (age / life)).mean() for part, age in zip(quality, stale, strict=True)]))
            for life in HALF_LIVES
        ),
    )


def ages(outcome: QueryOutcome, fps: float, sla_ms: float) -> Iterator[float | None]:
    """For each frame, milliseconds between it and the newest frame that is answered when its SLA ends.

    None for frames before the first answer. A frame that is answered itself, or later than a newer one, has age 0.
    """
    if not outcome.answers:
        yield from [None] * outcome.frames
        return
    period = 1e3 / fps
    when, newest = outcome.answers[-1]
    # The last latency is that of the newest frame of the last answer.
    first = when - outcome.latencies[-1] - newest * period
    answers = iter([*outcome.answers, (float("inf"), 0)])
    shown: int | None = None
    ready, following = next(answers)
    for frame in range(outcome.frames):
        while ready <= first + frame * period + sla_ms + 1e-6:
            shown = following
            ready, following = next(answers)
        yield None if shown is None else max(0, frame - shown) * period
