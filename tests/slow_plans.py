"""What plans give, computed turn by turn in plain Python, without anything that :mod:`gemel` uses to choose plans.

Only the loads of each turn come from :func:`gemel.runtime.planning.residency.steps`, which has tests of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from math import inf

from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.residency import Rule, steps
from gemel.runtime.planning.simulate import QueryOutcome


@dataclass(frozen=True)
class Replayed:
    """Figures of a plan's cycles, on average."""

    cycle_ms: float
    blocked_ms: float
    """Milliseconds of a cycle in which a turn waits for weights."""
    frames: dict[str, float]
    """Query -> frames per second that are answered within the SLA."""
    accuracy: dict[str, float]
    """Query -> mean accuracy of the answer of every frame; empty if a query has no staleness curve."""


def replay(
    known: Profile, budget: int, order: Sequence[str], rule: Rule, sizes: Mapping[str, int], cycles: int = 48
) -> Replayed:
    """Follow the turns of a plan one by one, without running other queries while a turn waits for weights.

    Frames are a fluid, so a turn may take 1.5 frames, which stands for one frame and two frames in turns. The second
    half of the cycles counts.
    """
    turns = list(islice(steps(known, budget, order, rule), cycles * len(order)))
    measured = (cycles // 2) * len(order)
    ready: dict[str, float] = {}
    free = begin = end = since = blocked = 0.0
    last = dict.fromkeys(known.queries, -1e3)
    answered = dict.fromkeys(known.queries, 0.0)
    worth = dict.fromkeys(known.queries, 0.0)
    for number, turn in enumerate(turns):
        if number == measured:
            since, blocked = end, 0.0
            answered, worth = dict.fromkeys(answered, 0.0), dict.fromkeys(worth, 0.0)
        for requested, part in ((begin, turn.ahead), (end, turn.then)):
            free = max(free, requested)
            for segment in part.load:
                free += known.load_ms(segment)
                ready[segment] = free
        query = turn.query
        begin = max([end, *(ready[segment] for segment in known.segments_of(query))])
        blocked += begin - end
        spec = known.queries[query]
        came = spec.fps / 1e3 * (begin - last[query])
        young = min(came, spec.fps / 1e3 * spare_ms(known, query, sizes[query]), sizes[query])
        # Where no frame is young enough for a full turn, the newest one runs alone.
        taken = max(young, min(came, 1.0))
        timely = max(young, min(came, spec.fps / 1e3 * spare_ms(known, query, 1), 1.0))
        answered[query] += timely
        worth[query] += timely + (sum_of_ages(spec.staleness, came - timely) if spec.staleness else 0.0)
        last[query] = begin
        below = int(taken)
        shorter = known.run_ms(query, below) if below else 0.0
        longer = known.run_ms(query, min(below + 1, sizes[query]))
        end = begin + shorter + (taken - below) * (longer - shorter)
    seconds = (end - since) / 1e3
    rounds = cycles - cycles // 2
    if seconds < 1e-6:
        # Without loads, cycles become shorter and shorter on a device that answers everything.
        rates = {query: spec.fps for query, spec in known.queries.items()}
        return Replayed(0.0, blocked / rounds, rates, dict.fromkeys(rates, 1.0))
    accurate = all(spec.staleness for spec in known.queries.values())
    return Replayed(
        seconds * 1e3 / rounds,
        blocked / rounds,
        {query: min(count / seconds, known.queries[query].fps) for query, count in answered.items()},
        {query: min(total / seconds / known.queries[query].fps, 1.0) for query, total in worth.items()}
        if accurate
        else {},
    )


def spare_ms(known: Profile, query: str, size: int) -> float:
    """Return the milliseconds that a frame may wait for a turn of ``size`` frames; infinity if all turns are late."""
    spare = known.sla_of(query) - known.run_ms(query, size)
    return spare if spare >= 0 else inf


def sum_of_ages(curve: Sequence[float], missed: float) -> float:
    """Return the sum of the accuracies of ``missed`` frames in a row that get the answer of the frame before them."""
    total, age = 0.0, 0
    while missed > 0:
        total += curve[min(age, len(curve) - 1)] * min(1.0, missed)
        missed, age = missed - 1, age + 1
    return total


def choices(known: Profile) -> Iterator[dict[str, int]]:
    """Yield every combination of turn sizes that the queries may have."""
    options = []
    for query, spec in known.queries.items():
        times = known.models[spec.model].run_ms
        options.append([size for size, time in times.items() if time <= known.sla_of(query)] or [1])
    for sizes in product(*options):
        yield dict(zip(known.queries, sizes, strict=True))


def every_cycle(known: Profile) -> Iterator[tuple[str, ...]]:
    """Yield every order in which each query has one turn; the first query comes first, as a cycle has no beginning."""
    first, *rest = known.queries
    for others in permutations(rest):
        yield (first, *others)


def shares(known: Profile, frames: Mapping[str, float]) -> list[float]:
    """Return the fraction of each query's frames that is answered in time, lowest first."""
    return sorted(frames[query] / spec.fps for query, spec in known.queries.items())


def standing_accuracy(known: Profile, query: str, outcome: QueryOutcome, skip: int) -> float:
    """Return the mean accuracy of the answers of a simulated query's frames, without the first ``skip`` frames.

    For each frame the newest answer counts that is ready at the end of the frame's SLA, and that is for this frame or
    an earlier one.
    """
    spec = known.queries[query]
    assert spec.staleness is not None
    period = 1e3 / spec.fps
    # The last latency belongs to the newest frame of the last answer.
    when, newest = outcome.answers[-1]
    first = when - outcome.latencies[-1] - newest * period
    done: dict[int, float] = {}
    latencies = iter(outcome.latencies)
    for when, newest in outcome.answers:
        frame = -1
        while frame < newest:
            frame = round((when - next(latencies) - first) / period)
            done[frame] = when
    total = 0.0
    known_frames = sorted(done)
    for frame in range(skip, outcome.frames):
        deadline = first + frame * period + known.sla_of(query) + 1e-6
        place = bisect_right(known_frames, frame) - 1
        while place >= 0 and done[known_frames[place]] > deadline:
            place -= 1
        if place >= 0:
            age = frame - known_frames[place]
            total += 1.0 if age == 0 else spec.staleness[min(age, len(spec.staleness)) - 1]
    return total / (outcome.frames - skip)
