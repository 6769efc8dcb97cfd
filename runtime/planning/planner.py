"""The plan: in which order queries take turns, and on how many frames each, so that the fewest are lost.

What a turn costs follows from :mod:`.residency`: weights that are loaded while the query before runs delay nothing
unless that run is shorter. The plan is the best of all orders and batch sizes for up to seven queries. For more, the
order begins with the nearest neighbours (who share most, cost least to change to) and is improved by 2-opt and Or-opt
moves (Croes 1958; Or 1976), and batch sizes are raised one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .profile import Profile
from .residency import Rule, Step, settled

__all__ = ["EXACT", "POLICIES", "Plan", "Policy", "check_policy", "make_plan"]

EXACT = 7
"""Up to so many queries, the plan is the best there is."""
_MOST_COMBINATIONS = 50_000
"""Of batch sizes, for an order; where there are more, not all of them are tried."""
_IMPROVEMENTS = 150

_Array = NDArray[np.float64]
Choices = NDArray[np.intp]


@dataclass(frozen=True)
class Policy:
    """How to plan and what to do with the plan."""

    rule: Rule = field(default_factory=Rule)
    listed: bool = False
    """Queries take turns as they are listed."""
    fair: bool = False
    """Batch sizes make the slowest query as fast as can be, instead of losing the fewest frames."""
    lazy: bool = False
    """Loading nothing ahead is planned as well, as that leaves room for one more model, and the better is followed."""


_NEXUS = Rule("recent", whole=True, ahead="all", fill=False)
POLICIES = {
    "gemel": Policy(),
    "nexus": Policy(_NEXUS, listed=True, fair=True, lazy=True),
    "nexus+shared": Policy(_NEXUS, listed=True, fair=True, lazy=True),
    "lru": Policy(Rule("least-recent", ahead="none", fill=False), listed=True),
}
"""``nexus`` is the paper's baseline and does not know of shared weights: give it an unmerged profile."""


def check_policy(name: str) -> None:
    """Refuse a policy that does not exist.

    Raises:
        InputError: it is not one of :data:`POLICIES`.
    """
    if name not in POLICIES:
        raise InputError(f"--policy: {name!r} is not allowed: one of {', '.join(POLICIES)}")


@dataclass(frozen=True)
class Plan:
    """What the runner follows."""

    order: tuple[str, ...]
    batches: dict[str, int]
    """Frames of each query in its turn, at most."""
    rule: Rule
    pinned: frozenset[str]
    """Segments that are never dropped."""
    cycle_ms: float
    """Once round, every query having as many frames as its batch holds."""
    blocked_ms: float
    """The part of it in which nothing runs, as weights are awaited."""
    frames: dict[str, float]
    """Frames a second of each query that keep to the SLA."""


def make_plan(profile: Profile, budget: int, policy: Policy | None = None, exact: int = EXACT) -> Plan:
    """The best plan that is found, the same for the same profile.

    Args:
        profile: the workload on its device.
        budget: bytes, of :meth:`Profile.budget`.
        policy: what is allowed, and what counts.
        exact: up to so many queries, all orders are tried.
    """
    policy = policy or Policy()
    queries = tuple(profile.queries)
    if policy.lazy:
        eager = replace(policy, lazy=False)
        rules = (policy.rule, replace(policy.rule, ahead="none"))
        both = (make_plan(profile, budget, replace(eager, rule=rule), exact) for rule in rules)
        return max(both, key=lambda found: (_slowest(profile, found) if policy.fair else 0.0, *_worth(found)))
    if policy.listed:
        return _best_batches(profile, budget, queries, policy)
    if len(queries) <= exact:
        # A cycle has no beginning.
        orders = ((queries[0], *rest) for rest in permutations(queries[1:]))
        plans = (_best_batches(profile, budget, order, policy) for order in orders)
        return max(plans, key=_worth)
    listed = _best_batches(profile, budget, queries, policy)
    return max(listed, _improved(profile, budget, policy, _nearest(profile, queries)), key=_worth)


def _worth(found: Plan) -> tuple[float, float]:
    # Rounded: equal plans must not be told apart by the last bits of a sum.
    return round(sum(found.frames.values()), 6), -round(found.cycle_ms, 6)


def _slowest(profile: Profile, found: Plan) -> float:
    """The lowest part of a query's frames that keeps to the SLA."""
    return round(min(frames / profile.queries[query].fps for query, frames in found.frames.items()), 6)


def _best_batches(profile: Profile, budget: int, order: tuple[str, ...], policy: Policy) -> Plan:
    """The best batch sizes for an order."""
    cycles = settled(profile, budget, order, policy.rule)
    cost = _Cost(profile, order, cycles, policy.fair)
    if np.prod(cost.counts, dtype=float) <= _MOST_COMBINATIONS:
        best, _ = _best(cost, np.indices(cost.counts).reshape(len(order), -1).T)
    else:
        best = _raised(cost)
    time, blocked = cost.cycle(best[None])
    kept = {segment for query in order for segment in profile.segments_of(query)}
    turns = (turn for cycle in cycles for turn in cycle)
    kept -= {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.evict}
    return Plan(
        order,
        dict(zip(order, cost.sizes(best), strict=True)),
        policy.rule,
        frozenset(kept),
        float(time[0]),
        float(blocked[0]),
        dict(zip(order, cost.frames(best[None])[0].tolist(), strict=True)),
    )


def _raised(cost: _Cost) -> Choices:
    """From some good batch sizes, one changed at a time for as long as that helps."""
    counts = np.array(cost.counts)
    # As large for all; and from the smallest, that of the slowest query raised again and again.
    tried = list(np.minimum(np.arange(counts.max())[:, None], counts - 1))
    choice = np.zeros(len(counts), np.intp)
    while choice[slowest := cost.slowest(choice)] < counts[slowest] - 1:
        choice = choice.copy()
        choice[slowest] += 1
        tried.append(choice)
    best, score = _best(cost, np.array(tried))
    while True:
        before = score
        for place, count in enumerate(counts):
            changed = np.repeat(best[None], count, 0)
            changed[:, place] = np.arange(count)
            best, score = _best(cost, changed)
        if score <= before + 1e-9:
            return best


def _best(cost: _Cost, choices: Choices) -> tuple[Choices, float]:
    scores = cost.score(choices)
    place = int(np.argmax(scores))
    return choices[place], float(scores[place])


class _Cost:
    """What batch sizes lead to, for an order whose loads are known.

    Choices are ``[C, Q]``: in each of C plans, which of its batch sizes every query of the order has.
    """

    def __init__(self, profile: Profile, order: Sequence[str], cycles: Sequence[Sequence[Step]], fair: bool) -> None:
        loads = np.array(
            [[[sum(map(profile.load_ms, part.load)) for part in (turn.ahead, turn.then)] for turn in c] for c in cycles]
        )
        self._ahead, self._then = loads[:, :, 0], float(loads[:, :, 1].sum(1).mean())
        options = [profile.batches(query) for query in order]
        self.counts = [len(sizes) for sizes in options]
        """How many batch sizes each query may have."""
        widest = max(self.counts)
        self._sizes = np.array([sizes + sizes[-1:] * (widest - len(sizes)) for sizes in options])
        self._times = np.array(
            [
                [profile.run_ms(query, int(size)) for size in sizes]
                for query, sizes in zip(order, self._sizes, strict=True)
            ]
        )
        self._fps = np.array([profile.queries[query].fps for query in order])
        self._places = np.arange(len(order))
        self._sla, self._fair = profile.sla_ms, fair

    def sizes(self, choice: Choices) -> list[int]:
        """Frames of each query's batch."""
        found: list[int] = self._sizes[self._places, choice].tolist()
        return found

    def cycle(self, choices: Choices) -> tuple[_Array, _Array]:
        """Milliseconds of a cycle on average, and of them those in which weights are awaited, ``[C]`` each."""
        runs = self._times[self._places, choices]
        before = np.roll(runs, 1, axis=1)[:, None]
        blocked = np.maximum(self._ahead - before, 0).sum(2).mean(1) + self._then
        return np.maximum(runs.sum(1) + blocked, 1e-9), blocked

    def frames(self, choices: Choices) -> _Array:
        """Frames a second that keep to the SLA, on average over all that a camera's clock may show, ``[C, Q]``."""
        cycle = self.cycle(choices)[0][:, None]
        # In its turn a query takes what came since the last one and can still be answered in time.
        young = self._sla - self._times[self._places, choices]
        # What is late in any case is answered late.
        window = np.where(young >= 0, np.minimum(young, cycle), cycle)
        found: _Array = np.minimum(self._sizes[self._places, choices], self._fps * window / 1e3) / cycle * 1e3
        return found

    def slowest(self, choice: Choices) -> int:
        """The query with the lowest part of its frames."""
        return int(np.argmin(self.frames(choice[None])[0] / self._fps))

    def score(self, choices: Choices) -> _Array:
        """What is to be as large as can be, ``[C]``."""
        frames = self.frames(choices)
        # Of plans that lose as few, the one that is done sooner.
        total: _Array = np.round(frames.sum(1), 6) - self.cycle(choices)[0] * 1e-9
        lowest: _Array = (frames / self._fps).min(1) * 1e6 if self._fair else np.zeros(len(choices))
        return lowest + total


def _nearest(profile: Profile, queries: tuple[str, ...]) -> tuple[str, ...]:
    """An order in which each query is followed by one that has least to load after it; 2-opt and Or-opt improve it."""
    segments = [frozenset(profile.segments_of(query)) for query in queries]
    cost = np.array([[sum(map(profile.load_ms, new - old)) for new in segments] for old in segments])
    order, waiting = [0], list(range(1, len(queries)))
    while waiting:
        following = min(waiting, key=lambda each: (cost[order[-1], each], each))
        waiting.remove(following)
        order.append(following)
    return tuple(queries[index] for index in _shortened(order, cost))


def _shortened(order: list[int], cost: _Array) -> list[int]:
    """Moves of a stretch to another place, or round, for as long as the cycle gets shorter."""

    def length(cycle: list[int]) -> float:
        return float(cost[cycle, cycle[1:] + cycle[:1]].sum())

    best = length(order)
    improved = True
    while improved:
        improved = False
        for moved in _moves(order):
            if (new := length(moved)) < best - 1e-9:
                order, best, improved = moved, new, True
                break
    return order


def _moves(order: list[Any]) -> Iterator[list[Any]]:
    """2-opt: a stretch turned round; Or-opt: one to three moved elsewhere. The first stays where it is."""
    count = len(order)
    for start in range(1, count - 1):
        for end in range(start + 1, count):
            yield [*order[:start], *order[start : end + 1][::-1], *order[end + 1 :]]
    for size in (1, 2, 3):
        for start in range(1, count - size + 1):
            stretch, rest = order[start : start + size], order[:start] + order[start + size :]
            for place in range(1, len(rest) + 1):
                if place != start:
                    yield [*rest[:place], *stretch, *rest[place:]]


def _improved(profile: Profile, budget: int, policy: Policy, order: tuple[str, ...]) -> Plan:
    """The plan of an order, and of those that exchange two neighbours in it, while one of them is better."""
    best = _best_batches(profile, budget, order, policy)
    for place in islice(range(1, len(order) - 1), _IMPROVEMENTS):
        swapped = list(best.order)
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        best = max(best, _best_batches(profile, budget, tuple(swapped), policy), key=_worth)
    return best
