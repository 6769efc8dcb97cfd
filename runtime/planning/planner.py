"""Making a plan: the order in which queries take turns, and the frames of each turn, so that few frames are lost.

A device has memory for some of the models only, so queries take turns in a cycle, and weights are swapped between
turns. A plan decides two things.

- The *order*. Queries that share weights should follow each other, because then there is less to load. The order
  determines which segments are loaded and evicted at each turn (:mod:`.residency`).
- The *turn size* of each query: how many frames its turn takes. A long turn loads weights once for many frames, but
  frames get old while a query waits for its turn. A frame that cannot be answered within the SLA is lost. Order and
  turn sizes determine how long a cycle takes, and how many frames are answered within the SLA (:mod:`.turn_costs`).

For up to :data:`EXACT` queries every order is tried. For more queries, the search starts from a short tour
(:mod:`.orders`), and exchanges neighbouring queries if that answers more frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice, permutations

from ...errors import InputError
from .orders import short_tour
from .profile import Profile
from .residency import Rule, settled
from .turn_costs import TurnCosts, best_choice

__all__ = ["EXACT", "POLICIES", "Plan", "Policy", "check_policy", "make_plan"]

EXACT = 7
"""Maximum number of queries for which the planner tries all orders of their turns."""
_EXCHANGES = 150
"""Maximum number of pairs of neighbouring queries to exchange, in search of a better order of many queries."""


@dataclass(frozen=True)
class Policy:
    """Objective and constraints of plans."""

    rule: Rule = field(default_factory=Rule)
    """Rule that chooses the segments to evict and to prefetch."""
    listed: bool = False
    """Whether to keep the order in which the profile lists queries."""
    fair: bool = False
    """Whether to maximise the smallest fraction of frames that any query answers in time, instead of all frames."""
    lazy: bool = False
    """Whether to also plan without prefetch, which leaves room for one more model, and to take the better plan."""


_NEXUS = Rule("recent", whole=True, ahead="all", fill=False)
POLICIES = {
    "gemel": Policy(),
    "nexus": Policy(_NEXUS, listed=True, fair=True, lazy=True),
    "nexus+shared": Policy(_NEXUS, listed=True, fair=True, lazy=True),
    "lru": Policy(Rule("least-recent", ahead="none", fill=False), listed=True),
}
"""Name of a planning policy -> objective and constraints of its plans.

``gemel`` is the default. The others are baselines, which keep the order in which the profile lists queries. ``nexus``
is the baseline of the GEMEL paper: it loads and evicts whole models, and evicts the most recently used model first. It
does not know of shared weights, so it needs an unmerged profile (:func:`.profile.unmerged`). ``nexus+shared`` is the
same policy for a profile with shared weights. ``lru`` evicts the least recently used segments and prefetches nothing.
"""


def check_policy(name: str) -> None:
    """Check that a planning policy with this name exists.

    Raises:
        InputError: the name is not one of :data:`POLICIES`.
    """
    if name not in POLICIES:
        raise InputError(f"--policy: {name!r} is not allowed: one of {', '.join(POLICIES)}")


@dataclass(frozen=True)
class Plan:
    """Order, turn sizes and rule that a conductor follows, and the outcome that is expected of the plan."""

    order: tuple[str, ...]
    """Queries in the order of their turns. After the last query, the cycle begins again with the first."""
    batches: dict[str, int]
    """Query -> turn size: maximum number of frames that the query's turn takes."""
    rule: Rule
    """Rule that chooses the segments to evict and to prefetch."""
    pinned: frozenset[str]
    """Segments of the blob that stay in memory in every cycle of the plan."""
    cycle_ms: float
    """Milliseconds of a cycle in which every turn takes its maximum number of frames."""
    blocked_ms: float
    """Milliseconds of a cycle in which no model runs, because the next query's weights are still being loaded."""
    frames: dict[str, float]
    """Query -> expected frames per second that are answered within the SLA."""


def make_plan(profile: Profile, budget: int, policy: Policy | None = None, exact: int = EXACT) -> Plan:
    """Return the best plan of a workload that the search finds. The same arguments give the same plan.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once; see :meth:`.profile.Profile.budget`.
        policy: objective and constraints of the plan; the default policy if left out.
        exact: maximum number of queries for which all orders are tried.
    """
    policy = policy or Policy()
    queries = tuple(profile.queries)
    if policy.lazy:
        eager = replace(policy, lazy=False)
        rules = (policy.rule, replace(policy.rule, ahead="none"))
        plans = (make_plan(profile, budget, replace(eager, rule=rule), exact) for rule in rules)
        return max(plans, key=lambda plan: (_lowest_share(profile, plan) if policy.fair else 0.0, *_worth(plan)))
    if policy.listed:
        return _plan_of(profile, budget, queries, policy)
    if len(queries) <= exact:
        # A cycle has no beginning: orders that differ only in the query they begin with are the same cycle.
        orders = ((queries[0], *rest) for rest in permutations(queries[1:]))
        plans = (_plan_of(profile, budget, order, policy) for order in orders)
        return max(plans, key=_worth)
    listed = _plan_of(profile, budget, queries, policy)
    return max(listed, _exchanged(profile, budget, policy, short_tour(profile, queries)), key=_worth)


def _plan_of(profile: Profile, budget: int, order: tuple[str, ...], policy: Policy) -> Plan:
    """Return the plan for an order of queries, with the best turn sizes that the search finds."""
    cycles = settled(profile, budget, order, policy.rule)
    costs = TurnCosts(profile, order, cycles, policy.fair)
    choice = best_choice(costs)
    cycle_ms, blocked_ms = costs.cycle(choice[None])
    used = {segment for query in order for segment in profile.segments_of(query)}
    turns = [turn for cycle in cycles for turn in cycle]
    evicted = {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.evict}
    return Plan(
        order,
        batches=dict(zip(order, costs.sizes(choice), strict=True)),
        rule=policy.rule,
        pinned=frozenset(used - evicted),
        cycle_ms=float(cycle_ms[0]),
        blocked_ms=float(blocked_ms[0]),
        frames=dict(zip(order, costs.frames(choice[None])[0].tolist(), strict=True)),
    )


def _exchanged(profile: Profile, budget: int, policy: Policy, order: tuple[str, ...]) -> Plan:
    """Exchange neighbouring queries in an order, keep exchanges that improve the plan, and return the best plan."""
    best = _plan_of(profile, budget, order, policy)
    for place in islice(range(1, len(order) - 1), _EXCHANGES):
        swapped = list(best.order)
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        best = max(best, _plan_of(profile, budget, tuple(swapped), policy), key=_worth)
    return best


def _worth(plan: Plan) -> tuple[float, float]:
    """Return the key by which plans are compared: first more frames per second in time, then a shorter cycle."""
    # Rounded: the last bits of a sum must not decide between equal plans.
    return round(sum(plan.frames.values()), 6), -round(plan.cycle_ms, 6)


def _lowest_share(profile: Profile, plan: Plan) -> float:
    """Return the smallest fraction of its frames that any query of a plan answers within the SLA."""
    return round(min(frames / profile.queries[query].fps for query, frames in plan.frames.items()), 6)
