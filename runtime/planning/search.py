"""Search for the best plan: the order of turns, the maximum number of frames of each turn, and the rule of prefetch.

The search is an iterated local search (Lourenço, Martin and Stützle 2003): moves change the order, and a change that
makes the plan better is kept. A query may have several turns in a cycle. For few queries every order is tried first.
The search ends after a fixed amount of work, so that equal arguments give equal plans, and returns the best plan found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from math import prod
from random import Random

import numpy as np

from .objectives import ObjectiveName, Worth
from .orders import random_move, short_tour
from .profile import Profile
from .query_runs import Sizes
from .residency import Rule, Step, settled
from .timeline import Expectation, PlanTimeline

__all__ = ["FoundPlan", "best_of_orders", "search_plan"]

_EVERY_ORDER = 6
"""Maximum number of queries for which the search tries every order of turns, before random moves change orders."""
_EVERY_SIZES = 300
"""Maximum number of combinations of turn sizes that the search tries in full for an order that random moves made."""
_EVERY_SIZES_AT_FIRST = 1100
"""Maximum number of combinations of turn sizes that the search tries in full for each order that it begins with."""
_EVERY_SIZES_ONCE = 20_000
"""Maximum number of combinations of turn sizes that the search tries in full for the best orders, or for given ones."""
_FINALISTS = 16
"""Maximum number of best plans for whose orders the search finally tries all combinations of turn sizes."""
_WORK = 140.0
"""Work of a search for any workload, in about milliseconds of CPU time. Trying every order does not count."""
_WORK_PER_QUERY = 4.0
"""Additional work of a search for each query of the workload, in about milliseconds of CPU time."""
_ELEMENTS = 500_000
"""Maximum product of the numbers of turns, queries and plans whose timelines the search computes in one call."""
_NEIGHBOURS = 32
"""Maximum number of changes of a single query's turn size that the search tries in one step of hill climbing."""
_PATIENCE = 8
"""Number of moves without a better plan, per query, after which the search restarts from another order of turns."""
_KICKS = 60
"""Maximum number of times that one stage of the search restarts from another order of turns."""


@dataclass(frozen=True)
class FoundPlan:
    """Plan that a search found: order of turns, turn sizes, rule of eviction and prefetch, and expected results."""

    order: tuple[str, ...]
    sizes: Sizes
    """Maximum number of frames in a turn of each of the profile's Q queries, ``[Q]``."""
    rule: Rule
    cycles: Sequence[Sequence[Step]]
    """Turns with their evictions and loads of segments, in the cycles that the plan repeats."""
    outcome: Expectation
    """Expected times, rates and accuracies of the plan; the axis of plans has length 1 in each array."""
    row: tuple[float, ...]
    """Numbers that rank the plan by its objective (:class:`.objectives.Worth`) and its number of turns.

    Of two plans the better one has the larger row; the first number that differs decides.
    """
    key: tuple[float, ...]
    """Numbers that rank the plan within one stage of the search: ``row``, in some stages after
    :meth:`.objectives.Worth.smooth`."""


class _Search:
    """State of a search for a plan: the best plan so far, and the work that is left.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once.
        objective: name of the objective that ranks plans.
        work: work that the search may do, in about milliseconds of CPU time.
    """

    def __init__(self, profile: Profile, budget: int, objective: ObjectiveName, work: float) -> None:
        self.profile, self.budget = profile, budget
        self.queries = tuple(profile.queries)
        self.has_curves = all(spec.staleness is not None for spec in profile.queries.values())
        """Whether every query has a staleness curve, so that each plan's expected accuracies are computed."""
        self.options = [profile.batches(query) for query in self.queries]
        self.worth = Worth(profile, self.queries, objective)
        self.work = work
        self.best: FoundPlan | None = None
        """Best plan that the search has found so far; None before the first plan."""
        self.current: FoundPlan | None = None
        """Plan whose order the next random move changes; None before the first plan after a start."""
        self.leader: FoundPlan | None = None
        """Plan with the largest :attr:`FoundPlan.key` in this stage of the search; None before the first plan."""
        self.plans: list[FoundPlan] = []
        """Plans found in this stage of the search: the best one for each order of turns and rule that was tried."""
        self.smooth = False
        """Whether this stage of the search ranks plans by :meth:`.objectives.Worth.smooth` before their rows."""
        self._columns = 0
        """Length of :attr:`FoundPlan.row`, the same for all plans of the search."""
        self._random = Random(0)
        self._seen: set[tuple[tuple[str, ...], Rule]] = set()

    def consider(self, order: tuple[str, ...], rule: Rule, combinations: int) -> bool:
        """Find the best plan with an order and a rule, and return whether the search continues from that plan.

        An order that this stage of the search has already tried with the rule is not tried again.

        Args:
            order: queries in the order of their turns.
            rule: rule of eviction and prefetch.
            combinations: maximum number of combinations of turn sizes to try in full; hill climbing if there are more.
        """
        if (order, rule) in self._seen:
            return False
        self._seen.add((order, rule))
        cycles = settled(self.profile, self.budget, order, rule)
        timeline = PlanTimeline(self.profile, self.queries, cycles, fill=rule.fill, accuracy=self.has_curves)
        self.work -= timeline.work
        turns = sum(map(len, cycles))
        if prod(map(len, self.options)) <= combinations:
            found = self._tried(timeline, turns, np.array(list(product(*self.options)), np.intp))
        else:
            found = self._climbed(timeline, turns)
        sizes, outcome, (*most, cycle_ms) = found
        # Of plans that are equal otherwise, the one with fewer turns is better, then the one with the shorter cycle.
        key = (*most, -len(order), cycle_ms)
        plan = FoundPlan(order, sizes, rule, cycles, outcome, key[-self._columns :], key)
        self.plans.append(plan)
        if self.best is None or plan.row > self.best.row:
            self.best = plan
        if self.leader is None or key > self.leader.key:
            self.leader = plan
        if self.current is None or key > self.current.key:
            self.current = plan
            return True
        return False

    def improve_sizes(self) -> None:
        """Try all combinations of turn sizes for this stage's best orders, if there are too many for each order."""
        if _EVERY_SIZES_AT_FIRST < prod(map(len, self.options)) <= _EVERY_SIZES_ONCE:
            for plan in sorted(self.plans, key=lambda plan: plan.row, reverse=True)[:_FINALISTS]:
                self._seen.discard((plan.order, plan.rule))
                self.consider(plan.order, plan.rule, _EVERY_SIZES_ONCE)

    def start_elsewhere(self, random: Random) -> None:
        """Continue the search from another order: three random moves change the order of this stage's best plan."""
        assert self.leader is not None
        order = self.leader.order
        for _ in range(3):
            order = random_move(order, self.queries, random)
        self.current = None
        self._seen.discard((order, self.leader.rule))
        self.consider(order, self.leader.rule, _EVERY_SIZES)

    def begin(self, *, smooth: bool) -> None:
        """Begin a stage of the search from the best plan so far.

        Args:
            smooth: whether the stage ranks plans by :meth:`.objectives.Worth.smooth` before their rows.
        """
        assert self.best is not None
        self.smooth = smooth
        self._seen.clear()
        self.plans.clear()
        self.current = self.leader = None
        self.consider(self.best.order, self.best.rule, _EVERY_SIZES)

    def _climbed(self, timeline: PlanTimeline, turns: int) -> tuple[Sizes, Expectation, tuple[float, ...]]:
        """Return turn sizes ``[Q]`` of Q queries from hill climbing, their expectation, and the numbers that rank them.

        Climbing starts at the turn sizes of an earlier plan; if there is none, at equal sizes for all queries.
        """
        most = max(map(len, self.options))
        if (near := self.current or self.leader or self.best) is not None:
            starts = near.sizes[None]
        else:
            starts = np.array([[each[min(rank, len(each) - 1)] for each in self.options] for rank in range(most)])
        found = self._tried(timeline, turns, np.asarray(starts, np.intp))
        if self.current is not None and len(self.queries) > _EVERY_ORDER and found[2] < self.current.key:
            # With many queries, other turn sizes hardly ever make such an order better than the current plan.
            return found
        while self.work > 0:
            better = self._tried(timeline, turns, self._neighbours(found[0]))
            if better[2] <= found[2]:
                break
            found = better
        return found

    def _neighbours(self, sizes: Sizes) -> Sizes:
        """Return C variants ``[C, Q]`` of turn sizes ``sizes [Q]`` of Q queries, each with one changed turn size."""
        changes = [
            (place, size) for place, options in enumerate(self.options) for size in options if size != sizes[place]
        ]
        if len(changes) > _NEIGHBOURS:
            changes = self._random.sample(changes, _NEIGHBOURS)
        rows = np.repeat(sizes[None], max(1, len(changes)), 0)
        for row, (place, size) in zip(rows, changes, strict=False):
            row[place] = size
        return rows

    def _tried(self, timeline: PlanTimeline, turns: int, sizes: Sizes) -> tuple[Sizes, Expectation, tuple[float, ...]]:
        """Return the best of C choices ``[C, Q]`` of turn sizes of Q queries, its expectation and ranking numbers."""
        at_once = max(1, _ELEMENTS // (turns * len(self.queries)))
        best: tuple[Sizes, Expectation, tuple[float, ...]] | None = None
        for start in range(0, len(sizes), at_once):
            part = sizes[start : start + at_once]
            before = timeline.work
            outcome = timeline.outcome(part)
            self.work -= timeline.work - before
            rows = self.worth.rows(outcome.frames, outcome.accuracy, outcome.cycle_ms)
            # One more, because the number of turns is added to each row later.
            self._columns = rows.shape[1] + 1
            if self.smooth:
                rows = np.concatenate([self.worth.smooth(outcome.frames, outcome.accuracy), rows], axis=1)
            place = Worth.best(rows)
            row = tuple(rows[place].tolist())
            if best is None or row > best[2]:
                accuracy = None if outcome.accuracy is None else outcome.accuracy[place : place + 1]
                chosen = slice(place, place + 1)
                alone = Expectation(
                    outcome.cycle_ms[chosen], outcome.blocked_ms[chosen], outcome.frames[chosen], accuracy
                )
                best = part[place], alone, row
        assert best is not None
        return best


def best_of_orders(
    profile: Profile,
    budget: int,
    orders: Iterable[tuple[str, ...]],
    rules: Sequence[Rule],
    objective: ObjectiveName,
) -> FoundPlan:
    """Return the best plan of some orders of turns and some rules of eviction and prefetch.

    All combinations of turn sizes are tried if there are at most 20,000; otherwise hill climbing chooses some.
    """
    found = _Search(profile, budget, objective, np.inf)
    for order in orders:
        for rule in rules:
            found.consider(order, rule, _EVERY_SIZES_ONCE)
    assert found.best is not None
    return found.best


def search_plan(profile: Profile, budget: int, rule: Rule, objective: ObjectiveName) -> FoundPlan:
    """Return the best plan of a workload that a search of limited work finds. Equal arguments give equal plans.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once.
        rule: rule of eviction and prefetch; prefetch for one turn and for several turns are both tried.
        objective: name of the objective that ranks plans.
    """
    queries = tuple(profile.queries)
    work = _WORK + _WORK_PER_QUERY * len(queries)
    found = _Search(profile, budget, objective, work)
    rules = (rule, replace(rule, far=True)) if rule.ahead != "none" and not rule.whole else (rule,)
    orders: Iterator[tuple[str, ...]]
    if len(queries) <= _EVERY_ORDER:
        # A cycle has no beginning: orders that differ only in the query they begin with are the same cycle.
        orders = ((queries[0], *rest) for rest in permutations(queries[1:]))
    else:
        orders = iter(dict.fromkeys((queries, short_tour(profile, queries))))
    for order in orders:
        for each in rules:
            found.consider(order, each, _EVERY_SIZES_AT_FIRST)
    found.improve_sizes()
    if len(queries) <= _EVERY_ORDER:
        # Work spent on every order does not count, because only random moves give a query a second turn.
        found.work = work
    random = Random(0)
    for smooth in (True, False) if found.worth.is_steep else (False,):
        found.begin(smooth=smooth)
        rest = work / 2 if smooth else 0.0
        failed = kicks = 0
        while found.work > rest and kicks < _KICKS:
            current = found.current
            assert current is not None
            moved = random_move(current.order, queries, random)
            rule_ = random.choice(rules) if random.random() < 0.2 else current.rule
            failed = 0 if found.consider(moved, rule_, _EVERY_SIZES) else failed + 1
            if failed > _PATIENCE * len(queries):
                # No move helps any more: a few at once may lead to another, better plan.
                failed, kicks = 0, kicks + 1
                found.start_elsewhere(random)
        found.improve_sizes()
    assert found.best is not None
    return found.best
