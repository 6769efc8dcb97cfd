"""Rules of the scheduler that the Gemel paper's authors published (github.com/artpad6/gemel_nsdi23), for comparison.

Models take turns in the listed order. A model processes at least one frame in its turn, and waits for one if there is
none. Eviction takes the most recently used model first, which is the model that still runs while the next one loads. A
load during a run is allowed if these two models fit in memory together. Other resident models are not counted, so the
schedule may hold more bytes than the budget. If one frame of a batch is in time, its late frames count as processed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from gemel.runtime.planning.profile import Profile

__all__ = ["Published", "published"]


@dataclass(frozen=True)
class Published:
    """Result of running an unmerged workload by the scheduler's rules that the Gemel paper's authors published."""

    processed: float
    """Fraction of all frames that is processed, counted as the published code counts."""
    timely: float
    """Fraction of all frames that is processed within the SLA."""
    lowest: tuple[float, ...]
    """Fraction of each query's frames that is processed, rounded, in rising order. It decides the batch sizes."""
    blocked: float
    """Fraction of the time in which nothing runs because weights are still loading."""
    peak: int
    """Maximum bytes of weights that the schedule holds at once."""


def published(profile: Profile, budget: int, frames: int) -> Published:
    """Try every combination of batch sizes, and return the result whose slowest queries process most frames.

    Args:
        profile: unmerged workload whose queries all have one frame rate.
        budget: bytes of weights that may be resident at once.
        frames: number of frames of each camera.
    """
    known = [profile.models[query.model].run_ms for query in profile.queries.values()]
    found = (_run(profile, budget, batches, frames) for batches in product(*map(sorted, known)))
    return max(found, key=lambda run: run.lowest)


def _run(profile: Profile, budget: int, batches: Sequence[int], frames: int) -> Published:
    names = list(profile.queries)
    sizes = [sum(profile.segments[each].bytes for each in profile.segments_of(name)) for name in names]
    loads = [sum(map(profile.load_ms, profile.segments_of(name))) for name in names]
    runs = [profile.run_ms(name, batch) for name, batch in zip(names, batches, strict=True)]
    period = 1e3 / next(iter(profile.queries.values())).fps
    counted, timely, taken = [0] * len(names), [0] * len(names), [0] * len(names)
    resident: list[int] = []
    now = blocked = 0.0
    peak = 0
    while min(taken) < frames:
        for turn in range(len(names)):
            before = turn - 1
            load = 0.0 if turn in resident else loads[turn]
            resident = [each for each in resident if each != turn]
            while sum(sizes[each] for each in resident) + sizes[turn] > budget:
                resident.pop()
            resident.append(turn)
            if sizes[turn] + sizes[before] <= budget:
                peak = max(peak, sum(sizes[each] for each in {*resident, before % len(names)}))
                load = max(0.0, load - runs[before])
            else:
                peak = max(peak, sum(sizes[each] for each in resident))
            now += load
            blocked += load
            while taken[turn] < frames:
                arrived = min(frames, int(now / period + 1e-9) + 1)
                batch = range(max(taken[turn], arrived - batches[turn]), arrived)
                late = sum(frame * period + profile.sla_ms < now + runs[turn] for frame in batch)
                if late < len(batch):
                    now += runs[turn]
                    counted[turn] += len(batch)
                    timely[turn] += len(batch) - late
                    taken[turn] = arrived
                    break
                taken[turn] = max(taken[turn], arrived)
                now += 1.0
    total = frames * len(names)
    lowest = tuple(sorted(round(count / frames, 2) for count in counted))
    return Published(sum(counted) / total, sum(timely) / total, lowest, blocked / now, peak)
