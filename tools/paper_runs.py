"""Simulate the runs of tools/reproduce_paper.py, and keep the figures of each run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from paper_baseline import Worth, baseline_plan
from paper_merge import Query, Setting, profile_of
from paper_models import Architecture, Fit

from gemel.runtime.planning.planner import POLICIES, Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.simulate import QueryOutcome, simulate

__all__ = ["HALF_LIVES", "MEMORY", "Cell", "Outcome", "Runs", "ages", "memory_bytes", "worth_of"]

MEMORY = {"min": 0.0, "50 %": 0.5, "75 %": 0.75, "all": 1.0}
"""Memory setting of the published scheduler -> budget, from the bytes of the largest model (0) to those of all (1)."""
HALF_LIVES = (100, 300, 1000)
"""Milliseconds in which an old result loses half of its accuracy; several are tried, as scenes differ in speed."""
_START = 0.1
"""Seconds of a simulated run before those that count, as a fraction of these: the first cycles, and some more."""
_TARGET = 0.95
"""Accuracy of a merged query relative to its original: the lowest that merging accepts."""

_POLICIES = {**POLICIES, "gemel, sum": replace(POLICIES["gemel"], objective="sum")}


class Cell(NamedTuple):
    """One run to simulate: a workload, a memory setting, a policy, and the parameters that sweeps vary."""

    workload: str
    memory: str
    policy: str
    """Name of a policy in :data:`POLICIES`, or "gemel, sum": gemel's policy for the most frames of all queries."""
    setting: Setting


@dataclass(frozen=True)
class Outcome:
    """Figures of one simulated run: fractions of frames and time, age of answers, and accuracy."""

    processed: float
    """Fraction of all frames that is processed."""
    lowest: float
    """Smallest fraction of its frames that any query processes."""
    blocked: float
    """Fraction of the time in which nothing runs because weights are still loading."""
    age_ms: float
    """Mean milliseconds between a frame and the frame whose result answers it; 0 for a frame processed in time."""
    accuracy: tuple[float, ...]
    """Mean accuracy relative to the original models on every frame, for each half-life in :data:`HALF_LIVES`."""


def memory_bytes(profile: Profile, memory: str) -> int:
    """Return the budget in bytes for a memory setting ("min", "50 %", ...) and an unmerged workload's profile."""
    least, most = profile.budget("min"), profile.budget("all")
    return least + int(MEMORY[memory] * (most - least))


@dataclass
class Runs:
    """Results of simulated runs; each run is simulated once, when its result is first asked for."""

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
        """Return the device profile of a workload under a setting of the sweeps."""
        return profile_of(self.workloads[workload], self.known, self.fit, setting)

    def all(self, cells: Iterable[Cell]) -> list[Outcome]:
        """Return the results of several simulated runs, in their order."""
        return [self[cell] for cell in cells]

    def _run(self, cell: Cell) -> Outcome:
        # The budget is that of the unmerged workload, whatever fraction is merged.
        budget = memory_bytes(self.profile(cell.workload, replace(cell.setting, merged=0.0)), cell.memory)
        profile = self.profile(cell.workload, cell.setting)
        return _simulated(profile, budget, _POLICIES[cell.policy], self.seconds)


def worth_of(profile: Profile, budget: int, seconds: float) -> Worth:
    """Return a function that simulates a plan and returns the fraction of frames of each query, the lowest first."""
    return lambda plan: tuple(sorted(_Counted(profile, budget, plan, seconds).shares))


def _simulated(profile: Profile, budget: int, policy: Policy, seconds: float) -> Outcome:
    if policy.listed and policy.objective == "max-min":
        plan = baseline_plan(profile, budget, policy, worth_of(profile, budget, seconds))
    else:
        plan = make_plan(profile, budget, policy)
    counted = _Counted(profile, budget, plan, seconds)
    stale = [np.array([np.inf if age is None else age for age in each]) for each in counted.ages()]
    # A query with more than one segment shares one with others, so it was retrained.
    quality = [_TARGET if len(profile.segments_of(name)) > 1 else 1.0 for name in profile.queries]
    seen = np.concatenate(stale)
    return Outcome(
        counted.processed,
        min(counted.shares),
        counted.blocked_ms / (seconds * 1e3),
        float(seen[np.isfinite(seen)].mean()) if np.isfinite(seen).any() else np.inf,
        tuple(
            float(np.mean([part * (0.5 ** (age / life)).mean() for part, age in zip(quality, stale, strict=True)]))
            for life in HALF_LIVES
        ),
    )


class _Counted:
    """Counts of a simulated run of a plan, without those of its start, when weights are loaded for the first time.

    Args:
        profile: workload that is planned.
        budget: maximum bytes of weights that may be in memory at once.
        plan: plan to follow.
        seconds: seconds of the run that count, after a tenth as many that do not.
    """

    def __init__(self, profile: Profile, budget: int, plan: Plan, seconds: float) -> None:
        # A run is the same up to any moment, however long it goes on.
        start = simulate(profile, budget, plan, _START * seconds)
        whole = simulate(profile, budget, plan, (1 + _START) * seconds)
        self._profile, self._start, self._whole = profile, start, whole
        self.blocked_ms = whole.blocked_ms - start.blocked_ms
        counts = [(start.queries[name], whole.queries[name]) for name in profile.queries]
        frames = [after.frames - before.frames for before, after in counts]
        processed = [after.processed - before.processed for before, after in counts]
        self.shares = [part / max(1, count) for part, count in zip(processed, frames, strict=True)]
        """Fraction of its frames that each query processes."""
        self.processed = sum(processed) / max(1, sum(frames))
        """Fraction of all frames that is processed."""

    def ages(self) -> Iterator[list[float | None]]:
        """Yield for each query the ages of the answers to its frames; see :func:`ages`."""
        for name, query in self._profile.queries.items():
            found = list(ages(self._whole.queries[name], query.fps, self._profile.sla_ms))
            yield found[self._start.queries[name].frames :]


def ages(outcome: QueryOutcome, fps: float, sla_ms: float) -> Iterator[float | None]:
    """Yield for each frame of a simulated query the age in milliseconds of the newest answer when the frame's SLA ends.

    The age is the time between the frame and the newest frame that is answered by then: 0 if that is the frame itself
    or a newer one, None before the first answer.
    """
    if not outcome.answers:
        yield from [None] * outcome.frames
        return
    period = 1e3 / fps
    when, newest = outcome.answers[-1]
    # The last latency belongs to the newest frame of the last answer.
    first = when - outcome.latencies[-1] - newest * period
    answers = iter([*outcome.answers, (float("inf"), 0)])
    shown: int | None = None
    ready, following = next(answers)
    for frame in range(outcome.frames):
        while ready <= first + frame * period + sla_ms + 1e-6:
            shown = following
            ready, following = next(answers)
        yield None if shown is None else max(0, frame - shown) * period
